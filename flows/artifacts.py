"""What a stage leaves in Prefect's UI: its metrics, its curve or picture, and how far a training has come."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

STEPS = re.compile(r"\bstep (\d+) of (\d+)\b|: (\d+) of (\d+), ")  # what clp_lightning.progress prints
LARGEST_PICTURE = 1_000_000  # bytes: artifacts lie in Prefect's database


class Progress:
    """A progress artifact that follows a stage's lines."""

    def __init__(self, stage: str) -> None:
        self.stage, self.artifact = stage, None
        self.shown = -1.0

    def read(self, line: str) -> None:
        """Update the artifact if the line says how far the stage is."""
        if not (found := STEPS.search(line)):
            return
        done, total = (int(number) for number in found.groups() if number is not None)
        percent = 100.0 * done / max(1, total)
        if percent == self.shown:
            return
        self.shown = percent
        if self.artifact is None:
            created = create_progress_artifact(percent, key=key(self.stage, "progress"), description=self.stage)
            assert isinstance(created, UUID)  # a coroutine only in asynchronous flows
            self.artifact = created
        else:
            update_progress_artifact(self.artifact, percent)


def key(stage: str, kind: str) -> str:
    """Return an artifact's key; Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{stage}-{kind}".lower()).strip("-")


def of_stage(stage: str, workspace: Path) -> None:
    """Store what the stage wrote to reports/: metrics as a table, a training curve or the frontier as a picture."""
    reports, name = workspace / "reports", stage.replace("@", "-")
    metrics = reports / "metrics" / f"{name}.json"
    if metrics.is_file():
        rows = [{"metric": metric, "value": value} for metric, value in flat(json.loads(metrics.read_text())).items()]
        create_table_artifact(rows, key=key(stage, "metrics"), description=f"Metrics of {stage}")
    curve = reports / "curves" / f"{name}.csv"
    if curve.is_file():
        _image(_plot(curve), key(stage, "curve"), f"Training curve of {stage}")
    if stage == "publish":
        frontier(workspace)


def frontier(workspace: Path) -> None:
    """Store the frontier's picture, and where the file with the whole comparison lies."""
    picture = workspace / "reports" / "frontier.png"
    if picture.is_file() and picture.stat().st_size < LARGEST_PICTURE:
        text = f"Frontier; the comparison is in {(workspace / 'reports' / 'frontier.json').resolve().as_uri()}"
        _image(picture.read_bytes(), "frontier", text)


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested values under dotted names."""
    return {str(name): value for name, value in pd.json_normalize(values).to_dict("records")[0].items()}


def _image(png: bytes, name: str, description: str) -> None:
    # the picture itself, not a link: the UI is on another port, often on another machine, than the workspace
    create_image_artifact("data:image/png;base64," + base64.b64encode(png).decode(), key=name, description=description)


def _plot(curve: Path) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with curve.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "seconds")]
    figure = Figure(figsize=(6, 1.4 * max(1, len(names))), dpi=80, layout="constrained")
    panels = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=False):
        panel.plot([float(row["step"]) for row in rows], [float(row[name] or "nan") for row in rows], color="#0F62AC")
        panel.set_ylabel(name, fontsize=8)
        panel.grid(color="#E4E7EB")
    panels[-1].set_xlabel("step")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
