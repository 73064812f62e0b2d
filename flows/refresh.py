"""The flow `refresh-data`: take a new snapshot of the corpus; retrain only if it differs from the last one."""

import json
import sys
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.deployments import run_deployment

from flows import dvc_state
from flows.check import missing
from flows.stage_log import StageLog
from flows.stage_process import StageProcesses

CARD = Path("data") / "corpus" / "card.json"


@flow(name="refresh-data")
def refresh_data(workspace: str = ".", deployment: str = "retrain/retrain", promotion: bool = True) -> str:
    """Run the stage `corpus` anew and start the retraining if its hash changed; returns "unchanged" or "changed".

    Args:
        workspace: folder with a dvc.yaml, relative to the project.
        deployment: what retrains; it gets the same workspace. A run that is going on already reads the new corpus, or the
            next scheduled one does.
        promotion: as for the retraining.
    """
    folder, processes = Path(workspace), StageProcesses()
    for line in dvc_state.heal(folder):
        get_run_logger().warning(line)
    before = digest(folder)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--force", "corpus"]
    try:
        processes.run(command, cwd=folder, log=StageLog("corpus", folder), name="corpus")
    finally:
        processes.end_all()
    after, logger = digest(folder), get_run_logger()
    if after == before:
        logger.info("the corpus is unchanged (%s): nothing to retrain", after)
        return "unchanged"
    logger.info("the corpus changed from %s to %s: retraining", before, after)
    if line := missing():
        raise RuntimeError(f"the corpus changed, but its retraining would wait for ever: {line}")
    run_deployment(deployment, parameters={"workspace": workspace, "promotion": promotion}, timeout=0)
    return "changed"


def digest(workspace: Path) -> str | None:
    """Return the hash of the corpus in a workspace, None before the first."""
    card = workspace / CARD
    return json.loads(card.read_text(encoding="utf-8"))["sha256"] if card.is_file() else None
