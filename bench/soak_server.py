"""A Prefect server and worker for the soak, and kill -9 for what they run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class PrefectProcesses:
    """`make server`, `make deploy`, `make worker`, with a home and a port of their own."""

    def __init__(self, root: Path, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.root, self.home = root, home
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(home), "PREFECT_PORT": str(port), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_WORKER_QUERY_SECONDS": "1",
        }  # fmt: skip
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start the server, register the deployments without their schedules, start the worker."""
        self._start("server")
        self._wait(lambda: self.api("health"), 120)
        subprocess.run(["make", "deploy"], cwd=self.root, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        for name in ("retrain/retrain", "refresh-data/refresh-data"):  # their nights are not ours
            deployment = self.api(f"deployments/name/{name}")
            self.api(f"deployments/{deployment['id']}/pause_deployment", {})
        self.restart_worker()

    def schedule(self, workspace: Path) -> str:
        """Schedule a retraining for now, as a deployment's schedule does; returns the run's id."""
        deployment = self.api("deployments/name/retrain/retrain")["id"]
        parameters = {"workspace": str(workspace), "parallel": 2, "promotion": True, "retries": 0}
        run = self.api(
            f"deployments/{deployment}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}},
        )
        return str(run["id"])

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
        """Close a run whose process is gone: it holds the deployment's only slot."""
        if not self.ended(run):
            self.api(f"flow_runs/{run}/set_state", {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True})

    def kill(self, victim: str, run: str, workspace: Path) -> int:
        """Kill -9 the flow's process, the worker's, the running stage's, or `clp stage publish`; returns 1 if it was there."""
        if victim == "worker":
            os.killpg(self.running["worker"].pid, signal.SIGKILL)
            return 1
        pids = self._pids(victim, run, workspace)
        for pid in pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return 1
        return 0

    def restart_worker(self) -> None:
        """Start a worker and wait until the server knows it."""
        self._start("worker")
        self._wait(
            lambda: any(w["status"] == "ONLINE" for w in self.api("work_pools/clp-process/workers/filter", {})), 90
        )

    def expected(self) -> set[int]:
        """Process groups that live for as long as the soak does."""
        return {process.pid for process in self.running.values()}

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the server's REST API; a busy database is asked again."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}", data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        for _ in range(60):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            time.sleep(0.5)
        raise RuntimeError(f"{path}: the server stays busy\n{self.logs()}")

    def logs(self) -> str:
        """Return the ends of the processes' logs."""
        return "".join(f"--- {path.name}\n{path.read_text()[-3000:]}\n" for path in sorted(self.home.glob("*.log")))

    def stop(self) -> None:
        """End worker and server."""
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(self, target: str) -> None:
        with (self.home / f"{target}.log").open("ab") as log:
            self.running[target] = subprocess.Popen(
                ["make", target], cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def _wait(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError):
                if condition():
                    return
            time.sleep(0.3)
        raise RuntimeError(f"not up after {seconds:.0f} s\n{self.logs()}")

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
