"""Waiting for processes, and telling whether they live."""

import time
from pathlib import Path


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(met)


def pids_in(folder: Path) -> list[int]:
    assert wait_until((folder / "pids").exists, 15)
    return [int(pid) for pid in (folder / "pids").read_text().split()]
