"""Where the stages' files lie, relative to the project folder, and how metrics, curves and checkpoints are written."""

import shutil
from pathlib import Path
from typing import Any

from clp_lightning.files import atomic, fingerprint, write_json

CORPUS, PAIRS, NORMALIZATION = Path("data/corpus"), Path("data/pairs"), Path("data/normalization.json")
BASE, REFERENCE, REWARD_MODEL = Path("models/base"), Path("models/reference"), Path("models/informativeness")
RESULTS, STORE, REPORTS = Path("results"), Path("frontier.duckdb"), Path("reports")


def checkpoints(stage: str, *parts: Any) -> Path:
    """Return the folder of a stage's checkpoints for exactly these parameters and inputs."""
    plain = [part.model_dump() if hasattr(part, "model_dump") else part for part in parts]
    folder = Path("checkpoints") / f"{stage}-{fingerprint(*plain)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def metrics(stage: str, values: dict[str, Any]) -> None:
    """Write a stage's metrics for `dvc metrics`."""
    write_json(REPORTS / "metrics" / f"{stage}.json", values)


def curve(stage: str, rows: list[dict[str, float]]) -> None:
    """Write a training curve for `dvc plots`."""
    from clp_lightning.trainer import write_curve

    with atomic(REPORTS / "curves" / f"{stage}.csv") as beside:
        write_curve(rows, beside)


def remove(folder: Path) -> None:
    """Delete what a stage that has succeeded needs no longer."""
    shutil.rmtree(folder, ignore_errors=True)
