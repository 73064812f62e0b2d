"""The soak's Prefect: retrainings that are scheduled, waited for, and killed -9 in part or whole."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.soak.processes import PrefectProcesses

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class SoakServer(PrefectProcesses):
    """Server, deployments without their own schedules, and a worker."""

    def start(self) -> None:
        """Start everything and wait until it is up; raises RuntimeError when it does not come up."""
        self.launch("server")
        self._wait(self.healthy, 120)
        subprocess.run(["make", "deploy"], cwd=self.root, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        for name in ("retrain/retrain", "refresh-data/refresh-data"):  # their nights are not ours
            deployment = self.api(f"deployments/name/{name}")
            self.api(f"deployments/{deployment['id']}/pause_deployment", {})
        self.restart_worker()

    def schedule(self, workspace: Path) -> str:
        """Schedule a retraining for now, as a deployment's schedule does; returns the run's id."""
        return self.deployed("retrain/retrain", workspace=str(workspace), parallel=2, promotion=True)

    def until_completed(self, workspace: Path) -> int:
        """Schedule runs until one completes; returns how many that took, raises RuntimeError after five."""
        for count in range(1, 6):
            run = self.schedule(workspace)
            deadline = time.monotonic() + 600
            while not self.ended(run) and time.monotonic() < deadline:
                time.sleep(0.5)
            if self._state(run) == "COMPLETED":
                return count
            self.give_up(run)
        raise RuntimeError(f"five runs in a row did not complete:\n{self.logs()}")

    def ended(self, run: str) -> bool:
        """Whether a run has come to an end of any kind."""
        return self._state(run) in ENDED

    def give_up(self, run: str) -> None:
        """Close a run that has not ended by itself."""
        if not self.ended(run):
            self.close(run)

    def kill(self, victim: str, run: str, workspace: Path) -> int:
        """Kill -9 the flow's process, the worker's, the running stage's, or `clp stage publish`; returns 1 if it was there."""
        if victim == "worker":
            self.kill_outright("worker")
            return 1
        pids = self._pids(victim, run, workspace)
        for pid in pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return 1
        return 0

    def restart_worker(self) -> None:
        """Start a worker and wait until the server knows it."""
        self.launch("worker")
        self._wait(lambda: "ONLINE" in self.workers(), 90)

    def expected(self) -> set[int]:
        """Process groups that live for as long as the soak does."""
        return {process.pid for process in self.running.values()}

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not up after {seconds:.0f} s\n{self.logs()}")
            time.sleep(0.3)

    def _state(self, run: str) -> str:
        return str(self.api(f"flow_runs/{run}")["state"]["type"])

    def _pids(self, victim: str, run: str, workspace: Path) -> list[int]:
        """Processes to kill: of the flow the eldest of its run, of a stage its command in the workspace."""
        if victim == "flow":
            members = self.members(run)
            return [pid for pid in members if _parent(pid) not in members]
        found = []
        for pid, folder in _processes():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().split(b"\0")
                wanted = b"stage" in command and (victim == "stage" or b"publish" in command)
                if wanted and os.readlink(folder / "cwd") == str(workspace):
                    found.append(pid)
        return found

    def members(self, run: str) -> set[int]:
        """Return all live processes of a run: its id is in their environment."""
        wanted, found = f"PREFECT__FLOW_RUN_ID={run}".encode(), set()
        for pid, folder in _processes():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(pid)
        return found


def _processes() -> list[tuple[int, Path]]:
    return [(int(folder.name), folder) for folder in Path("/proc").glob("[0-9]*")]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0
