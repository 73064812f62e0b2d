"""`clp prune`: what old runs leave behind is removed; what is in use or could be gone back to stays."""

import time
from pathlib import Path
from typing import NamedTuple

from clp_lightning import paths
from clp_lightning.paths import CHECKPOINTS, LOGS
from clp_lightning.promotion import champion
from clp_lightning.store.queries import Store, forget

DAY = 86_400.0


class Plan(NamedTuple):
    """What would be removed: folders of kept policies and checkpoints, log files, and runs of the store."""

    policies: list[Path]
    checkpoints: list[Path]
    logs: list[Path]
    runs: list[str]

    @property
    def paths(self) -> list[Path]:
        """All files and folders."""
        return [*self.policies, *self.checkpoints, *self.logs]


def plan(*, keep: int, runs: int, days: float) -> Plan:
    """Find what can go: but for the champion, its last `keep` predecessors and the newest `keep` other policies; but for
    the newest `runs` runs of the store; checkpoints and logs that nothing wrote to for `days` days.

    Raises `ClpError` when the champion's file is broken: what it names could be among what goes.
    """
    entry = champion.current()
    safe = set() if entry is None else {entry["id"], *entry["history"][len(entry["history"]) - keep :]}
    others = [folder for folder in _folders(paths.KEPT) if folder.name not in safe]
    by_age = sorted(others, key=_last_written, reverse=True)
    published = Store(paths.STORE).runs().run_id.tolist() if paths.STORE.exists() else []
    oldest = time.time() - days * DAY
    stale = [folder for folder in _folders(CHECKPOINTS) if _last_written(folder) < oldest]
    logs = [path for path in sorted(LOGS.glob("*.jsonl")) if path.stat().st_mtime < oldest]
    return Plan(by_age[keep:], stale, logs, published[runs:])


def prune(todo: Plan) -> None:
    """Remove what `plan` found; the champion's history forgets the policies first, so that it never names a missing one."""
    champion.forget({folder.name for folder in todo.policies})
    for path in todo.paths:
        path.unlink(missing_ok=True) if path.is_file() else paths.remove(path)
    if todo.runs:
        forget(paths.STORE, todo.runs)


def size(path: Path) -> int:
    """Return the bytes that a file or folder would free: a file that has other links frees none."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in found if file.stat().st_nlink == 1)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir() and not path.name.startswith("."))


def _last_written(folder: Path) -> float:
    return max([folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.rglob("*"))])
