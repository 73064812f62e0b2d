"""The deployed flow for real: a Prefect server and worker of this test's own, on loopback, started with `make`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from processes import alive, pids_in, wait_until

from bench.soak.processes import PrefectProcesses

pytestmark = pytest.mark.slow

SIBLINGS = """
stages:
  left:
    cmd: date +%s.%N > left.started && sleep 4 && echo left > left.txt
    outs: [left.txt]
  right:
    cmd: date +%s.%N > right.started && sleep 4 && echo right > right.txt
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


class Prefect(PrefectProcesses):
    """A server and a worker, and what the tests ask them."""

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=180)

    def missing(self, level: str) -> str:
        return self.call(sys.executable, "-m", "flows.check", level).stderr

    def submit(self, workspace: Path) -> str:
        return self.deployed("retrain/retrain", workspace=str(workspace), promotion=False)

    def artifacts(self, run: str) -> dict[str, str]:
        found = self.api("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return {artifact["key"]: artifact["type"] for artifact in found}

    def state(self, run: str) -> str:
        return self.api(f"flow_runs/{run}")["state"]["name"]

    def ended(self, run: str, seconds: float = 90) -> str:
        assert wait_until(lambda: self.state(run) in ("Completed", "Failed", "Crashed", "Cancelled"), seconds), (
            self.logs()
        )
        return self.state(run)

    def messages(self, run: str) -> str:
        lines = self.api(
            "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        )
        return "\n".join(line["message"] for line in lines)

    def stages(self, run: str) -> dict[str, str]:
        wanted = {"artifacts": {"key": {"any_": ["retrain-stages"]}}, "flow_runs": {"id": {"any_": [run]}}}
        (table,) = self.api("artifacts/filter", wanted)
        return {row["stage"]: row["status"] for row in json.loads(table["data"])}


@pytest.fixture(scope="module")
def prefect(repository, tmp_path_factory) -> Iterator[Prefect]:
    running = Prefect(repository, tmp_path_factory.mktemp("prefect"))
    try:
        assert "no Prefect server answers" in running.missing("server")
        running.launch("server")
        assert wait_until(running.healthy, 90), running.logs()
        assert "has no work pool 'clp-process'; create it with `make deploy`" in running.missing("worker")
        for _ in range(2):  # deploying again changes nothing and is no error
            deployed = running.call("make", "deploy")
            assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        assert "no worker is online" in running.call("make", "retrain").stderr
        running.launch("worker")
        assert wait_until(lambda: "ONLINE" in running.workers(), 60), running.logs()
        assert running.missing("worker") == ""
        yield running
    finally:
        running.stop()


def test_command_from_the_readme_runs_siblings_in_parallel_and_a_second_run_finds_all_up_to_date(prefect, toy_pipeline):
    project = toy_pipeline(SIBLINGS)
    command = ["prefect", "deployment", "run", "retrain/retrain"]
    done = prefect.call(
        *command, "--param", f"workspace={project}", "--param", "parallel=2", "--param", "promotion=false", "--watch"
    )
    assert done.returncode == 0, done.stdout + done.stderr + prefect.logs()
    (run,) = set(re.findall(r"UUID: ([0-9a-f-]{36})", done.stdout))
    assert prefect.state(run) == "Completed"
    assert prefect.stages(run) == {"left": "ran", "right": "ran", "join": "ran"}
    assert (project / "both.txt").read_text() == "left\nright\n"
    lock = (project / "dvc.lock").read_text()  # both siblings wrote theirs
    assert all(f"  {stage}:\n" in lock for stage in ("left", "right", "join"))
    starts = [float((project / f"{stage}.started").read_text()) for stage in ("left", "right")]
    assert abs(starts[0] - starts[1]) < 2

    second = prefect.submit(project)
    assert prefect.ended(second) == "Completed"
    assert set(prefect.stages(second).values()) == {"up to date"}


def test_failed_stage_fails_the_run_with_its_last_lines_and_stops_what_follows(prefect, toy_pipeline):
    project = toy_pipeline(FAILING)
    run = prefect.submit(project)
    assert prefect.ended(run) == "Failed"
    assert not (project / "after.txt").exists()
    assert prefect.stages(run) == {"bad": "failed", "after": "not run"}
    assert wait_until(lambda: "out of luck" in prefect.messages(run), 20)


def test_cancelled_run_leaves_no_process_and_a_second_run_at_once_is_refused(prefect, toy_pipeline):
    project = toy_pipeline(SLEEPING)
    run = prefect.submit(project)
    assert wait_until((project / "pids").exists, 60), prefect.logs()
    (pid,) = pids_in(project)
    group = os.getpgid(pid)
    assert len(group_members(group)) >= 3  # guard, dvc, the stage

    assert prefect.ended(prefect.submit(project)) == "Cancelled"
    assert alive(pid), "the run that was refused must not disturb the one that runs"

    prefect.api(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    started = time.monotonic()
    assert wait_until(lambda: not group_members(group), 30), prefect.logs()
    assert time.monotonic() - started < 10
    assert prefect.ended(run) == "Cancelled"
    assert not (project / "never.txt").exists()

    (project / "dvc.yaml").write_text(SLEEPING.replace("300", "0"))  # no lock of the killed run stands in the way
    assert prefect.ended(prefect.submit(project)) == "Completed"
    assert (project / "never.txt").exists()


UNLUCKY = """
stages:
  flaky:
    cmd: echo try >> tries && test $(wc -l < tries) -ge 2 && touch flaky.txt
    outs: [flaky.txt]
"""
WRONG = """
stages:
  wrong:
    cmd: "echo try >> tries; echo 'clp: error: params.yaml: no such method' >&2; false"
    outs: [wrong.txt]
"""


def test_a_stage_is_tried_again_where_that_can_help_and_not_where_its_parameters_are_wrong(prefect, toy_pipeline):
    project = toy_pipeline(UNLUCKY)
    run = prefect.deployed("retrain/retrain", workspace=str(project), promotion=False, retries=2)
    assert prefect.ended(run) == "Completed"
    assert (project / "tries").read_text() == "try\n" * 2
    (project / "dvc.yaml").write_text(WRONG)
    (project / "tries").unlink()
    run = prefect.deployed("retrain/retrain", workspace=str(project), promotion=False, retries=2)
    assert prefect.ended(run) == "Failed"
    assert (project / "tries").read_text() == "try\n"


REFRESHED = """
stages:
  corpus:
    cmd: mkdir -p data/corpus && cp source.json data/corpus/card.json
    outs: [data/corpus]
  train:
    cmd: cp data/corpus/card.json model.json
    deps: [data/corpus]
    outs: [model.json]
"""


def test_a_new_corpus_is_trained_on_and_the_same_one_is_not(prefect, toy_pipeline):
    project = toy_pipeline(REFRESHED)

    def refresh(digest: str) -> set[str]:
        (project / "source.json").write_text(json.dumps({"sha256": digest}))
        before = retrainings(prefect)
        run = prefect.deployed("refresh-data/refresh-data", workspace=str(project), promotion=False)
        assert prefect.ended(run) == "Completed", prefect.messages(run)
        return retrainings(prefect) - before

    (started,) = refresh("one")
    assert prefect.ended(started) == "Completed"
    assert json.loads((project / "model.json").read_text()) == {"sha256": "one"}
    assert refresh("one") == set()
    (started,) = refresh("two")
    assert prefect.ended(started) == "Completed"
    assert json.loads((project / "model.json").read_text()) == {"sha256": "two"}


def test_the_champion_is_evaluated_at_other_weightings_and_its_stages_leave_artifacts(prefect, smoke, tmp_path):
    project = Path(shutil.copytree(smoke, tmp_path / "project"))
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    values = (project / "params.yaml").read_text().replace("max_kl: 12.0", "max_kl: 1.0e+6")
    (project / "params.yaml").write_text(values.replace("max_length_ratio: 2.0", "max_length_ratio: 1.0e+6"))
    storage = tmp_path / "storage"
    done = prefect.call(sys.executable, "-m", "flows.remote", "set", str(storage), "--workspace", str(project))
    assert done.returncode == 0, done.stderr
    run = prefect.deployed("retrain/retrain", workspace=str(project), promotion=True)
    assert prefect.ended(run, 200) == "Completed", prefect.messages(run)
    assert prefect.stages(run) | {"promote": "promoted"} == prefect.stages(run)
    kinds = prefect.artifacts(run)
    assert kinds["publish-metrics"] == "table" and kinds["retrain-promotion"] == "table"
    assert (
        kinds["frontier"] == "image"
        and kinds["report"] == "markdown"
        and (project / "reports" / "report.html").exists()
    )
    assert any(storage.rglob("*")), "a new champion goes to the remote"
    assert (project / "models" / "champion.json.dvc").exists()
    log = [json.loads(line) for line in (project / "logs" / f"{run}.jsonl").read_text().splitlines()]
    assert {entry["run"] for entry in log} == {run} and {"publish", "promote"} <= {entry["stage"] for entry in log}

    wanted = ["informativeness=0.25,brevity=0.75"]
    run = prefect.deployed("evaluate/evaluate", workspace=str(project), weightings=wanted)
    assert prefect.ended(run, 120) == "Completed", prefect.messages(run)
    assert prefect.artifacts(run)["evaluation"] == "table"
    answers = pd.read_parquet(project / "reports" / "evaluations" / f"{run}.parquet")
    assert set(answers["w:brevity"]) == {0.75}

    (project / "models" / "champion.json").write_text("{")
    run = prefect.deployed("evaluate/evaluate", workspace=str(project))
    assert prefect.ended(run) == "Failed"
    assert wait_until(lambda: "cannot read models/champion.json" in prefect.messages(run), 20)


def test_after_the_server_was_killed_the_next_run_completes(prefect, toy_pipeline):
    project = toy_pipeline(SLEEPING.replace("300", "20"))
    run = prefect.submit(project)
    assert wait_until((project / "pids").exists, 60), prefect.logs()
    group = os.getpgid(pids_in(project)[0])
    prefect.kill_outright("server")
    time.sleep(3)
    prefect.launch("server")
    assert wait_until(prefect.healthy, 90), prefect.logs()
    assert wait_until(lambda: not group_members(group), 60), prefect.logs()  # the flow came through, or ended its stage
    if not wait_until(lambda: prefect.state(run) in ("Completed", "Failed", "Crashed"), 45):
        # nobody was there to be told of its end: a person closes it, as docs/flows.md says
        prefect.close(run)
    assert wait_until(lambda: "ONLINE" in prefect.workers(), 60), prefect.logs()
    assert prefect.ended(prefect.submit(project)) == "Completed"
    assert (project / "never.txt").exists()


def retrainings(prefect) -> set[str]:
    runs = prefect.api("flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}, "limit": 200})
    return {run["id"] for run in runs}


def group_members(group: int) -> list[int]:
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and alive(int(folder.name)):
                members.append(int(folder.name))
        except ProcessLookupError:
            continue
    return members
