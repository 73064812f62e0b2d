"""The flow without a server: graph, one stage, no process outlives its flow. With one: test_flows_server.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, pids_in, wait_until

from clp_lightning.config.parameters import load_config
from clp_lightning.project.workspace import prepare
from flows import stage_process
from flows.retrain import read_graph, run_stage
from flows.stage_process import StageFailedError, StageProcesses

TOY = """
stages:
  join:
    cmd: cat left.txt right.txt > both.txt
    deps: [left.txt, right.txt]
    outs: [both.txt]
  left:
    cmd: echo left > left.txt
    outs: [left.txt]
  right:
    cmd: echo right > right.txt
    outs: [right.txt]
  apart:
    cmd: echo apart > apart.txt
    outs: [apart.txt]
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# The graph


def test_graph_lists_upstream_stages_first(toy_pipeline):
    assert read_graph(toy_pipeline(TOY)) == {"apart": (), "left": (), "right": (), "join": ("left", "right")}


def test_graph_of_a_target_leaves_out_what_it_does_not_need(toy_pipeline):
    assert list(read_graph(toy_pipeline(TOY), target="join")) == ["left", "right", "join"]


@pytest.mark.parametrize(
    ("dvc_yaml", "target", "message"),
    [
        (TOY, "jion", "target 'jion': no such stage; stages: "),
        ("stages: {}", None, "its dvc.yaml has no stages"),
        ("stages: {a: {cmd: true, nonsense: 1}}", None, "dvc.yaml"),
        (TOY + "  twice:\n    cmd: 'true'\n    outs: [left.txt]\n", None, "left.txt"),
    ],
)
def test_graph_rejects(toy_pipeline, dvc_yaml, target, message):
    with pytest.raises(ValueError) as raised:
        read_graph(toy_pipeline(dvc_yaml), target)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_graph_needs_a_dvc_project(tmp_path):
    with pytest.raises(ValueError, match="no DVC project"):
        read_graph(tmp_path)


# One stage


def test_stage_runs_once_and_again_by_force(toy_pipeline):
    project = toy_pipeline(TOY)
    run = lambda **more: run_stage.fn("left", project, StageProcesses(), **more).status  # noqa: E731
    assert [run(), run(), run(force=True)] == ["ran", "up to date", "ran"]
    assert (project / "left.txt").read_text() == "left\n"
    (project / "left.txt").unlink()
    assert run() in ("ran", "from cache")


def test_failed_stage_reports_its_last_lines(toy_pipeline):
    project = toy_pipeline("stages: {bad: {cmd: 'echo about to fail; exit 3'}}")
    with pytest.raises(StageFailedError, match=r"(?s)stage bad exited with status \d+; .*about to fail"):
        run_stage.fn("bad", project, StageProcesses())


def test_stage_finds_the_commands_of_this_environment(toy_pipeline, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    project = toy_pipeline("stages: {where: {cmd: 'command -v dvc > where.txt', outs: [where.txt]}}")
    run_stage.fn("where", project, StageProcesses())
    assert (project / "where.txt").read_text().strip() == str(Path(sys.executable).parent / "dvc")


# Output


def test_output_is_logged_line_by_line_and_progress_bars_are_thinned(tmp_path):
    code = "import sys; w = sys.stdout.write; w('one\\r\\n'); [w(f'{i}%\\r') for i in range(100)]; w('\\ntwo\\nend')"
    logged: list[str] = []
    lines = StageProcesses().run(python(code), cwd=tmp_path, log=logged.append, name="x")
    assert lines == ["one", "99%", "two", "end"]
    assert logged == ["one", "0%", "99%", "two", "end"]


def test_line_ending_split_between_two_writes_is_no_progress_bar(tmp_path):
    code = "import os, time; os.write(1, b'one\\r'); time.sleep(0.3); os.write(1, b'\\ntwo\\n')"
    assert StageProcesses().run(python(code), cwd=tmp_path, log=print, name="x") == ["one", "two"]


def test_output_that_is_not_utf8_is_no_error(tmp_path):
    code = "import os; os.write(1, b'caf\\xe9\\n')"
    assert StageProcesses().run(python(code), cwd=tmp_path, log=print, name="x") == ["caf\ufffd"]


# No process outlives its flow

SLEEPER = """
import os, pathlib, signal, subprocess, sys, time
{setup}
child = subprocess.Popen(["sleep", "300"])
beside = pathlib.Path("pids.partial")
beside.write_text(f"{{os.getpid()}} {{child.pid}}")
beside.rename("pids")
{end}
"""


def sleeper(setup: str = "", end: str = "time.sleep(300)") -> list[str]:
    return python(SLEEPER.format(setup=setup, end=end))


@pytest.mark.parametrize("setup", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["willing", "deaf"])
def test_end_all_ends_the_whole_group(tmp_path, monkeypatch, setup):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(stage_process, "GRACE_SECONDS", 1.0)
    processes = StageProcesses()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(processes.run, sleeper(setup), cwd=tmp_path, log=print, name="sleeper")
        pids = pids_in(tmp_path)
        processes.end_all()
        with pytest.raises(StageFailedError, match="stage sleeper"):
            running.result(timeout=10)
    assert wait_until(lambda: not any(map(alive, pids)), 2)
    with pytest.raises(StageFailedError, match="the flow is ending"):
        processes.run(python("pass"), cwd=tmp_path, log=print, name="late")


def test_stage_ends_when_its_flow_is_killed_outright(tmp_path, repository):
    code = f"""
import pathlib
from flows.stage_process import StageProcesses
StageProcesses().run({sleeper()!r}, cwd=pathlib.Path({str(tmp_path)!r}), log=print, name="x")
"""
    flow = subprocess.Popen(python(code), cwd=repository)
    pids = pids_in(tmp_path)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert wait_until(lambda: not any(map(alive, pids)), 10)


def test_what_a_finished_stage_left_running_is_ended(tmp_path):
    assert StageProcesses().run(sleeper(end="print('done')"), cwd=tmp_path, log=print, name="x") == ["done"]
    assert wait_until(lambda: not any(map(alive, pids_in(tmp_path))), 5)


# What is missing


def test_check_names_the_server_that_does_not_answer(repository, tmp_path):
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.check"], cwd=repository, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Prefect server answers at http://127.0.0.1:9/api (")
    assert done.stderr.endswith("start it with `make server`\n")
    assert done.stderr.count("\n") == 1


# The project's own pipeline


@pytest.mark.parametrize("recipe", [None, "smoke"])
def test_last_stage_reads_every_methods_results_and_no_others(repository, tmp_path, recipe):
    workspace = prepare(recipe, tmp_path / "w", root=repository) if recipe else repository
    graph = read_graph(workspace)
    methods = load_config(workspace / "params.yaml").methods
    assert set(graph["publish"]) == {"evaluate_reference", *(f"evaluate@{method}" for method in methods)}
    assert set(graph) - set(graph["publish"]) - {f"train@{method}" for method in methods} == {
        "corpus", "base", "sft", "pairs@informativeness", "reward_model@informativeness", "normalization", "publish",
    }  # fmt: skip
