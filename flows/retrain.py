"""The flow `retrain`: every DVC stage as a Prefect task, in the order of DVC's own graph.

DVC decides what is out of date and keeps the results; Prefect adds schedules, retries, parallel siblings, logs,
cancellation and a report. No edge is written down here: the graph is read from dvc.yaml.
"""

import json
import os
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, dvc_state, remote
from flows.stage_log import StageLog, run_id
from flows.stage_process import StageProcesses

Graph = dict[str, tuple[str, ...]]


class StageResult(NamedTuple):
    """What became of one stage: "ran", "from cache", "up to date", "failed" or "not run"; of a promotion what was decided."""

    stage: str
    status: str
    seconds: float | None


def read_graph(workspace: Path | str, target: str | None = None) -> Graph:
    """Return DVC's stage graph: each stage with those whose outputs it needs, generation by generation.

    With `target`, only that stage and everything it needs. Call it from the main thread: DVC is not thread-safe.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import NotDvcRepoError, Repo

    try:
        with Repo(str(workspace)) as repo:
            root = repo.root_dir
            needs = {
                _target(stage, root): [_target(up, root) for up in ups] for stage, ups in repo.index.graph.adj.items()
            }
    except NotDvcRepoError:
        raise ValueError(f"workspace {str(workspace)!r}: no DVC project; prepare it with `make repro`") from None
    except DvcException as error:
        raise ValueError(f"workspace {str(workspace)!r}: {' '.join(str(error).split())}") from error
    if not needs:
        raise ValueError(f"workspace {str(workspace)!r}: its dvc.yaml has no stages")
    if target is not None and target not in needs:
        raise ValueError(f"target {target!r}: no such stage; stages: {', '.join(needs)}")
    wanted, todo = set(), [target] if target else list(needs)
    while todo:
        if (stage := todo.pop()) not in wanted:
            wanted.add(stage)
            todo += needs[stage]
    sorter, ordered = TopologicalSorter({stage: needs[stage] for stage in needs if stage in wanted}), []
    sorter.prepare()
    while generation := sorter.get_ready():
        ordered += sorted(generation)
        sorter.done(*generation)
    return {stage: tuple(needs[stage]) for stage in ordered}


def _target(stage: Any, root: str) -> str:
    """Name a stage as `dvc repro` in `root` wants it; DVC's own `addressing` depends on the current folder."""
    file = os.path.relpath(stage.path, root)
    return stage.name if file == "dvc.yaml" else f"{file}:{stage.name}" if hasattr(stage, "name") else file


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def run_stage(stage: str, workspace: Path, processes: StageProcesses, force: bool = False) -> StageResult:
    """Run one stage if DVC finds it out of date, streaming its output into the run's log."""
    flags = ["--single-item", *(["--force"] if force else [])]
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *flags, stage]
    started = time.monotonic()
    lines = processes.run(command, cwd=workspace, log=StageLog(stage, workspace), name=stage)
    dvc_state.keep(workspace)
    result = StageResult(stage, _status(lines), round(time.monotonic() - started, 1))
    if run_id() is not None and result.status != "up to date":
        artifacts.of_stage(stage, workspace)
    return result


@task(task_run_name="promote", cache_policy=NO_CACHE)
def promote(workspace: Path, processes: StageProcesses) -> StageResult:
    """Decide whether what was trained takes the champion's place; the decision is an artifact and in the store.

    A new champion goes to the workspace's DVC remote, if it has one.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "clp_lightning.cli", "promote", "--json"]
    log = StageLog("promote", workspace)
    lines = processes.run(command, cwd=workspace, log=log, name="promote")
    row = json.loads(next(line for line in reversed(lines) if line == "null" or line.startswith("{")))
    if row is None:
        status = "nothing new"
    else:
        status = "promoted" if row["promoted"] else "not promoted"
        create_table_artifact([row], key="retrain-promotion", description=f"{status}: {'; '.join(row['reasons'])}")
        artifacts.frontier(workspace)
        report = [sys.executable, "-m", "clp_lightning.cli", "report"]
        processes.run(report, cwd=workspace, log=log, name="report")
        link = (workspace / "reports" / "report.html").resolve().as_uri()
        create_link_artifact(link, key="report", link_text="figures and tables of the run", description=status)
    if status == "promoted" and remote.url(workspace) is not None:
        for command in remote.commands(workspace, "push"):
            processes.run(command, cwd=workspace, log=log, name="push")
    return StageResult("promote", status, round(time.monotonic() - started, 1))


@flow(name="retrain")
def retrain(
    workspace: str = ".",
    parallel: int = 1,
    force: bool = False,
    target: str | None = None,
    retries: int = 0,
    promotion: bool = False,
) -> list[dict[str, Any]]:
    """Bring a workspace's pipeline up to date and report what became of each stage.

    Args:
        workspace: folder with a dvc.yaml, relative to the project.
        parallel: stages that may run side by side; one training keeps two cores busy.
        force: run every stage, also those that are up to date.
        target: stop at this stage; null is the whole pipeline.
        retries: times a failed stage is tried again, unless it said what is wrong with its parameters or files; a training
            resumes from its checkpoint.
        promotion: decide at the end whether the new policy takes the champion's place.
    """
    if promotion and target is not None:
        raise ValueError("promotion: needs the whole pipeline; leave target out")
    if parallel < 1:
        raise ValueError(f"parallel: must be at least 1, but found {parallel}")
    if retries < 0:
        raise ValueError(f"retries: must be at least 0, but found {retries}")
    folder = Path(workspace)
    for line in dvc_state.heal(folder):
        get_run_logger().warning(line)
    graph = read_graph(workspace, target)
    processes = StageProcesses()
    stage_task = run_stage.with_options(
        retries=retries, retry_condition_fn=lambda task, run, state: not processes.closed and _may_pass(state)
    )
    futures: dict[str, PrefectFuture[StageResult]] = {}
    runner: ThreadPoolTaskRunner[StageResult] = ThreadPoolTaskRunner(max_workers=parallel)
    with runner:
        try:
            # In the graph's order, so that a task that waits for another never holds the thread its upstream needs.
            for stage, needs in graph.items():
                arguments = {"stage": stage, "workspace": folder, "processes": processes, "force": force}
                futures[stage] = runner.submit(stage_task, arguments, wait_for=[futures[name] for name in needs])
            if promotion:
                arguments = {"workspace": folder, "processes": processes}
                futures["promote"] = runner.submit(promote, arguments, wait_for=list(futures.values()))
            for future in futures.values():
                future.wait()
        finally:  # also on cancellation and SIGTERM, which arrive as BaseExceptions
            # before the runner joins its threads, which wait for these processes
            processes.end_all()
    return _report(futures)


def _may_pass(state: State) -> bool:
    """Whether another try can help: a stage that ended with `clp: error: ...` will say the same again."""
    return "clp: error: " not in (state.message or "")


def _report(futures: dict[str, PrefectFuture[StageResult]]) -> list[dict[str, Any]]:
    """Store the table of stages as an artifact; raises the first failed stage's error."""
    results = []
    for stage, future in futures.items():
        if future.state.is_completed():
            results.append(future.result())
        else:
            ran = future.state.is_failed() or future.state.is_crashed()
            results.append(StageResult(stage, "failed" if ran else "not run", None))
    rows = [result._asdict() for result in results]
    create_table_artifact(rows, key="retrain-stages", description="Stages of this retraining, in order")
    for result in results:
        if result.status == "failed":
            futures[result.stage].result()
    return rows


def _status(lines: list[str]) -> str:
    if any(line.startswith("Running stage") for line in lines):
        return "ran"
    return "from cache" if any("is cached - skipping run" in line for line in lines) else "up to date"
