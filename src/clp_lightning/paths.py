"""Where a project's files lie, relative to its folder (docs/design.md); checkpoints by what they were made from."""

import shutil
from pathlib import Path
from typing import Any

from clp_lightning.files import fingerprint

CORPUS, PAIRS, NORMALIZATION = Path("data/corpus"), Path("data/pairs"), Path("data/normalization.json")
MODELS, BASE, REFERENCE = Path("models"), Path("models/base"), Path("models/reference")
CHAMPION, KEPT = MODELS / "champion.json", MODELS / "kept"
RESULTS, STORE, REPORTS = Path("results"), Path("frontier.duckdb"), Path("reports")
CARD, NOTE = "clp.json", "clp_export.json"  # in the folder of a policy, and of an export: what it is
CHECKPOINTS, LOGS = Path("checkpoints"), Path("logs")


def checkpoints(stage: str, *parts: Any) -> Path:
    """Return the folder of a stage's checkpoints for exactly these parameters and inputs."""
    plain = [part.model_dump() if hasattr(part, "model_dump") else part for part in parts if part is not None]
    folder = CHECKPOINTS / f"{stage}-{fingerprint(*plain)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove(folder: Path) -> None:
    """Delete what a stage that has succeeded needs no longer."""
    shutil.rmtree(folder, ignore_errors=True)
