"""The deployed flow for real: a Prefect server and worker of this test's own, on loopback, started with `make`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_flows import alive, pids_in, wait_until

pytestmark = pytest.mark.slow

SIBLINGS = """
stages:
  left:
    cmd: sleep 2 && echo left > left.txt
    outs: [left.txt]
  right:
    cmd: sleep 2 && echo right > right.txt
    outs: [right.txt]
  join:
    cmd: cat left.txt right.txt > both.txt
    deps: [left.txt, right.txt]
    outs: [both.txt]
"""
SLEEPING = """
stages:
  asleep:
    cmd: echo $$ > pids.partial && mv pids.partial pids && sleep 300 && touch done.txt
    outs: [done.txt]
  never:
    cmd: touch never.txt
    deps: [done.txt]
    outs: [never.txt]
"""
FAILING = """
stages:
  bad:
    cmd: echo out of luck && false
    outs: [bad.txt]
  after:
    cmd: touch after.txt
    deps: [bad.txt]
    outs: [after.txt]
"""


class Prefect:
    """A server and a worker, each `make`'s own target in a process group of its own."""

    def __init__(self, repository: Path, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.repository, self.home = repository, home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "COV_"))},
            "PREFECT_HOME": str(home),
            "PREFECT_PORT": str(port),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, target: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{target}.log").open("wb") as log:
            process = subprocess.Popen(
                ["make", target],
                cwd=self.repository,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.repository, env=self.environment, capture_output=True, text=True, timeout=180
        )

    def missing(self, level: str) -> str:
        return self.call(sys.executable, "-m", "flows.check", level).stderr

    def deployment_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call("prefect", "deployment", "run", "retrain/retrain", *arguments)

    def flow_runs(self) -> list[dict[str, str]]:
        return json.loads(self.call("prefect", "flow-run", "ls", "--output", "json").stdout)

    def logs(self) -> str:
        return "".join(f"--- {path.name}\n{path.read_text()[-4000:]}\n" for path in sorted(self.home.glob("*.log")))

    def stop(self) -> None:
        for process in reversed(self.started):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


@pytest.fixture(scope="module")
def prefect(repository, tmp_path_factory) -> Iterator[Prefect]:
    running = Prefect(repository, tmp_path_factory.mktemp("prefect"))
    try:
        assert "no Prefect server answers" in running.missing("server")
        running.start("server")
        assert wait_until(lambda: not running.missing("server"), 90), running.logs()
        assert "has no work pool 'clp-process'; create it with `make deploy`" in running.missing("worker")
        for _ in range(2):  # deploying again changes nothing and is no error
            deployed = running.call("make", "deploy")
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        assert "no worker is online" in running.missing("worker")
        assert "no worker is online" in running.call("make", "retrain").stderr
        running.start("worker")
        assert wait_until(lambda: not running.missing("worker"), 60), running.logs()
        yield running
    finally:
        running.stop()


def test_deployed_run_completes_and_a_second_one_finds_all_up_to_date(prefect, toy_pipeline):
    project = toy_pipeline(SIBLINGS)
    parameters = ["--param", f"workspace={project}", "--param", "parallel=2", "--watch"]
    done = prefect.deployment_run(*parameters)
    assert done.returncode == 0, done.stdout + done.stderr + prefect.logs()
    assert (project / "both.txt").read_text() == "left\nright\n"
    lock = (project / "dvc.lock").read_text()
    assert all(f"  {stage}:\n" in lock for stage in ("left", "right", "join"))

    assert prefect.deployment_run(*parameters).returncode == 0
    assert [run["state_name"] for run in prefect.flow_runs()][:2] == ["Completed", "Completed"]
    artifact = prefect.call("prefect", "artifact", "inspect", "retrain-stages").stdout
    assert artifact.count("up to date") == 3 and artifact.count('"ran"') + artifact.count("'ran'") == 3, artifact


def test_failed_stage_fails_the_run_with_its_last_lines_and_stops_what_follows(prefect, toy_pipeline):
    project = toy_pipeline(FAILING)
    done = prefect.deployment_run("--param", f"workspace={project}", "--watch")
    assert done.returncode != 0
    assert not (project / "after.txt").exists()
    run = prefect.flow_runs()[0]
    assert run["state_name"] == "Failed"
    assert "out of luck" in prefect.call("prefect", "flow-run", "logs", run["id"]).stdout


def test_cancelled_run_leaves_no_process_and_a_second_run_at_once_is_refused(prefect, toy_pipeline):
    project = toy_pipeline(SLEEPING)
    assert prefect.deployment_run("--param", f"workspace={project}").returncode == 0
    assert wait_until((project / "pids").exists, 60), prefect.logs()
    (pid,) = pids_in(project)
    assert alive(pid)
    group = os.getpgid(pid)
    first = prefect.flow_runs()[0]["id"]

    prefect.deployment_run("--param", f"workspace={project}")
    assert wait_until(lambda: prefect.flow_runs()[0]["state_name"] == "Cancelled", 30), prefect.flow_runs()[:2]
    assert alive(pid), "the run that was refused must not disturb the one that runs"

    cancelled = prefect.call("prefect", "flow-run", "cancel", first)
    assert cancelled.returncode == 0, cancelled.stderr
    started = time.monotonic()
    assert wait_until(lambda: not group_members(group), 30), prefect.logs()
    print(f"group ended {time.monotonic() - started:.1f} s after the cancellation was accepted")
    assert time.monotonic() - started < 10
    state = lambda: {run["id"]: run["state_name"] for run in prefect.flow_runs()}[first]  # noqa: E731
    assert wait_until(lambda: state() == "Cancelled", 30), state()
    assert not (project / "never.txt").exists()


def group_members(group: int) -> list[int]:
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and alive(int(folder.name)):
                members.append(int(folder.name))
        except ProcessLookupError:
            continue
    return members
