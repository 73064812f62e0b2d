"""The flow `evaluate`: the champion at new weightings or on new prompts; nothing is trained."""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from clp_lightning.errors import plural
from flows.artifacts import flat
from flows.stage_log import StageLog, run_id
from flows.stage_process import StageProcesses


@flow(name="evaluate")
def evaluate(
    workspace: str = ".",
    weightings: list[str] | None = None,
    prompts: str | None = None,
    model: str = "champion",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a policy's rewards; the answers go to reports/evaluations/RUN.parquet, the means to an artifact.

    Args:
        workspace: folder with a params.yaml, relative to the project.
        weightings: trade-offs, e.g. ["informativeness=0.9,readability=0.1"]; the grid of params.yaml by default.
        prompts: file with one prompt per line, relative to the workspace; the test prompts by default.
        model: a policy folder, or champion.
        seed: of the sampling.
    """
    folder, processes = Path(workspace), StageProcesses()
    out = f"reports/evaluations/{run_id()}.parquet"
    command = [sys.executable, "-m", "clp_lightning.cli", "evaluate", "--json", "--model", model, "--out", out]
    command += ["--seed", str(seed), *(["--prompts", prompts] if prompts else [])]
    command += [part for weighting in weightings or [] for part in ("--weighting", weighting)]
    try:
        lines = processes.run(command, cwd=folder, log=StageLog("evaluate", folder), name="evaluate")
    finally:
        processes.end_all()
    report: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    rows = [flat(point) for point in report["points"]]
    text = f"{report['model']} on {plural(report['prompts'], 'prompt')}; answers: {(folder / out).resolve().as_uri()}"
    create_table_artifact(rows, key="evaluation", description=text)
    return report
