"""What every stage leaves beside its outputs: metrics and curves for DVC, and when it ran, how long, with how much memory."""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import pandas as pd

from clp_lightning.files import atomic, read_json, write_curve, write_json
from clp_lightning.paths import REPORTS


def metrics(stage: str, values: dict[str, Any]) -> None:
    """Write a stage's metrics for `dvc metrics`, without those that have no value (ROUGE where there is no reference)."""
    known = {key: value for key, value in values.items() if value == value}
    write_json(REPORTS / "metrics" / f"{stage}.json", known)


def curve(stage: str, rows: list[dict[str, float]]) -> None:
    """Write a training curve for `dvc plots`; without rows an empty one, since DVC wants the file."""
    with atomic(REPORTS / "curves" / f"{stage}.csv") as beside:
        if not rows:
            beside.write_text("step,loss\n")
            return
        write_curve(rows, beside)


@contextlib.contextmanager
def recorded(stage: str) -> Iterator[None]:
    """Note when a stage ran, for how long and with how much memory; of one that fails, the last success stays noted."""
    now, started = datetime.datetime.now(datetime.UTC), time.monotonic()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    values = {"seconds": round(time.monotonic() - started, 2), "peak_memory_mb": round(peak)}
    started_at = now.replace(tzinfo=None).isoformat(timespec="milliseconds")
    write_json(REPORTS / "stages" / f"{stage}.json", {"stage": stage, "started_at": started_at} | values)


def executions() -> pd.DataFrame:
    """Return what `recorded` noted, one row per stage."""
    rows = [read_json(path, remedy="delete it") for path in sorted((REPORTS / "stages").glob("*.json"))]
    frame = pd.DataFrame(rows, columns=["stage", "started_at", "seconds", "peak_memory_mb"])
    return frame.assign(started_at=pd.to_datetime(frame["started_at"]))
