"""The flow `sweep`: the evaluation split over (method, block of weightings), on local processes, Dask or Ray.

Each block writes the same files as the stage `evaluate` would; the stage then finds them and only scores. So a sweep that was
interrupted continues, and who sampled a point changes nothing about it.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from clp_lightning.config.parameters import Config, load_config
from flows.check import missing
from flows.retrain import retrain

RUNNERS = ("processes", "dask", "ray")


@task(task_run_name="{method} {indices}", cache_policy=NO_CACHE)
def sample_block(method: str, indices: list[int], workspace: str, threads: int) -> None:
    """Sample some weightings of one method; those that have their file already are left as they are."""
    import torch

    from clp_lightning.evaluation.sweep import sample

    torch.set_num_threads(threads)
    contestant, points = _opened(method, workspace)
    with contextlib.chdir(workspace):
        sample(contestant.policy, points, indices)


@functools.lru_cache(maxsize=1)
def _opened(method: str, workspace: str) -> Any:
    """Load a method once for all blocks of it that this worker gets in a row."""
    from clp_lightning.evaluation.results import sweep

    with contextlib.chdir(workspace):
        return sweep(load_config(), method)


@flow(name="sweep")
def sweep(workspace: str = ".", runner: str = "processes", workers: int = 2, block: int = 4) -> list[dict[str, Any]]:
    """Evaluate every method whose results are out of date, then bring the rest of the pipeline up to date.

    Args:
        workspace: folder with a dvc.yaml whose models are trained.
        runner: where blocks run: processes (this machine), dask or ray (extras of the package).
        workers: blocks at a time, each with its share of the cores.
        block: weightings per task.
    """
    if workers < 1 or block < 1:
        raise ValueError(f"workers and block: must be at least 1, but found {workers} and {block}")
    folder = str(Path(workspace).resolve())
    config = load_config(Path(folder) / "params.yaml")
    threads = max(1, (os.cpu_count() or 1) // workers)
    todo = list(blocks(config, outdated(folder), block))
    get_run_logger().info("%d blocks on %d workers (%s)", len(todo), workers, runner)
    with task_runner(runner, workers) as pool:
        futures = [
            pool.submit(
                sample_block,
                {"method": method, "indices": indices, "workspace": folder, "threads": threads},
                wait_for=[],
            )
            for method, indices in todo
        ]
        for future in futures:
            future.result()
    return retrain(workspace=workspace)


def blocks(config: Config, methods: list[str], size: int) -> Iterator[tuple[str, list[int]]]:
    """Yield (method, indices of weightings), method by method: a worker that goes on with one need not load it again."""
    from clp_lightning.evaluation.methods import weightings

    for method in methods:
        count = 1 if (grid := weightings(config, method)) is None else len(grid)
        for start in range(0, count, size):
            yield method, list(range(start, min(start + size, count)))


def outdated(workspace: str) -> list[str]:
    """Return the methods whose stage `evaluate` DVC finds out of date; raises `ValueError` when their models are."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"workspace {workspace!r}: {' '.join(done.stderr.split())}")
    stages = list(json.loads(done.stdout))
    if early := [stage for stage in stages if not stage.startswith("evaluate") and stage != "publish"]:
        raise ValueError(f"{early[0]} is out of date, so there is nothing to sweep yet; run the flow retrain first")
    return [
        "reference" if stage == "evaluate_reference" else stage.split("@")[1] for stage in stages if stage != "publish"
    ]


def task_runner(name: str, workers: int) -> TaskRunner[Any]:
    """Return Prefect's task runner of that name; raises `ValueError` that says what to install or choose."""
    try:
        match name:
            case "processes":
                return ProcessPoolTaskRunner(max_workers=workers)
            case "dask":
                from prefect_dask import DaskTaskRunner

                return DaskTaskRunner(
                    cluster_kwargs={"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
                )
            case "ray":
                from prefect_ray import RayTaskRunner

                os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
                local = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
                return RayTaskRunner(init_kwargs=local)
    except ImportError as error:
        raise ValueError(
            f"runner {name!r}: {error.name} is not installed; pip install 'clp-lightning[{name}]'"
        ) from error
    raise ValueError(f"runner {name!r}: unknown; choose one of {', '.join(RUNNERS)}")


def main(
    workspace: Annotated[str, typer.Option(help="Folder with a dvc.yaml whose models are trained.")] = ".",
    runner: Annotated[str, typer.Option(help="processes, dask or ray.")] = "processes",
    workers: Annotated[int, typer.Option(min=1, help="Blocks at a time.")] = 2,
    block: Annotated[int, typer.Option(min=1, help="Weightings per task.")] = 4,
) -> None:
    """Sweep over all weightings with several workers; needs a Prefect server (`make server`).

    Example: python -m flows.sweep --runner dask --workers 2
    """
    if line := missing("server"):
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1)
    try:
        sweep(workspace=workspace, runner=runner, workers=workers, block=block)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    from flows import sweep as module  # Ray's workers import the task by its module's name, which is not __main__

    typer.run(module.main)
