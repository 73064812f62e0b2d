"""Where a stage's output goes: the run's log in Prefect, a progress artifact, and `logs/RUN.jsonl` in the workspace.

The file has one JSON object per line, for those who search logs with other tools: time (UTC, ISO), run (Prefect's flow
run id), stage, message. `clp prune` removes old files.
"""

import datetime
import json
import logging
import threading
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError

from flows.artifacts import Progress

_LOCK = threading.Lock()


class StageLog:
    """Takes a stage's lines one by one."""

    def __init__(self, stage: str, workspace: Path) -> None:
        self.stage, self.run = stage, run_id()
        self.file = workspace / "logs" / f"{self.run}.jsonl"
        self.logger = _logger()
        self.progress = Progress(stage)

    def __call__(self, line: str) -> None:
        """Log a line; outside of a flow run it goes to Python's logging only."""
        self.logger.info(line)
        if self.run is not None:
            self.progress.read(line)
            self._append(line)

    def _append(self, line: str) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": now, "run": self.run, "stage": self.stage, "message": line}
        with _LOCK:
            self.file.parent.mkdir(exist_ok=True)
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def run_id() -> str | None:
    """Return the id of the flow run that this code runs in, or None."""
    if (task := TaskRunContext.get()) is not None and task.task_run.flow_run_id is not None:
        return str(task.task_run.flow_run_id)
    flow = FlowRunContext.get()
    return None if flow is None or flow.flow_run is None else str(flow.flow_run.id)


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:  # called as a plain function
        return logging.getLogger(__name__)
