"""A Prefect server and worker of one's own, on loopback, started with `make`: for the soak and for the tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench.listening import free_port


class PrefectProcesses:
    """`make server`, `make deploy`, `make worker`, with a home and a port of their own, each in its own process group."""

    def __init__(self, root: Path, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.root, self.home = root, home
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "COV_"))}
        self.environment = outside | {
            "PREFECT_HOME": str(home), "PREFECT_PORT": str(port), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }  # fmt: skip
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, target: str) -> None:
        """Start `make TARGET` and go on; its output is appended to TARGET.log."""
        with (self.home / f"{target}.log").open("ab") as log:
            self.running[target] = subprocess.Popen(
                ["make", target], cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def kill_outright(self, target: str) -> None:
        """Kill -9 the process group of a target."""
        os.killpg(self.running[target].pid, signal.SIGKILL)
        self.running[target].wait()

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the server's REST API; a busy database is asked again, as Prefect's own clients do."""
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
            except TimeoutError:  # on a busy machine; what changes nothing may be asked again
                if body is not None:
                    raise
            time.sleep(0.5)
        raise RuntimeError(f"{path}: the server stays busy\n{self.logs()}")

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            return bool(self.api("health"))
        except urllib.error.URLError:
            return False

    def workers(self) -> list[str]:
        """Return the states of the pool's workers, e.g. ONLINE."""
        return [worker["status"] for worker in self.api("work_pools/clp-process/workers/filter", {})]

    def deployed(self, name: str, **parameters: Any) -> str:
        """Schedule a run of the deployment FLOW/NAME for now; returns its id."""
        deployment = self.api(f"deployments/name/{name}")["id"]
        run = self.api(
            f"deployments/{deployment}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED", "name": "Scheduled"}},
        )
        return str(run["id"])

    def close(self, run: str) -> None:
        """Set a run whose process is gone to Crashed: it holds the deployment's only slot."""
        self.api(f"flow_runs/{run}/set_state", {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True})

    def logs(self) -> str:
        """Return the ends of the processes' logs."""
        return "".join(f"--- {path.name}\n{path.read_text()[-4000:]}\n" for path in sorted(self.home.glob("*.log")))

    def stop(self) -> None:
        """End what runs, the last started first."""
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
