"""`clp oracle`: every method on one testbed, in processes of their own, against the exact optimum."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clp_lightning import weightings
from clp_lightning.errors import UsageError
from clp_lightning.oracle import exact as oracle
from clp_lightning.oracle.exact import Array

REFERENCE, OPTIMUM = "reference", "optimum"
ALL = "all"  # as a method: every one
STEPS = 700  # by default: three objectives then need three minutes on two cores (docs/results.md)
# Enough points for the optimal ones to enclose 95 % of what ever more of them would: a coarse grid flatters (docs/log.md).
POINTS_PER_EDGE = {1: 2, 2: 21, 3: 16, 4: 9}


class Trained(NamedTuple):
    """What a trained method says about every response."""

    log_probs: Array  # [W, P, N], at the grid
    vertices: Array  # [K, P, N], at one-hot weightings
    seconds: float


def grid(objectives: int) -> Array:
    """Return the weightings [W, K] at which methods are compared."""
    return weightings.lattice(objectives, POINTS_PER_EDGE.get(objectives, 5))


def run(
    objectives: int,
    alpha: float,
    seed: int,
    *,
    steps: int,
    progress: Callable[[str, int], None],
    methods: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the methods of QUEUE, or those in `methods`, and return what `clp oracle --json` prints, and the frontiers.

    `progress` is told a method's name and the steps that it has done. Raises `UsageError` for an unknown method.
    """
    context = _start_server()
    from clp_lightning.oracle.testbed import LETTERS, METHODS, QUEUE, Testbed

    problem, points = Testbed(objectives, seed).problem(alpha), grid(objectives)
    for name in methods:
        if name not in (*METHODS, ALL):
            raise UsageError(f"--method {name}: no such method here; choose among {', '.join(METHODS)}, {ALL}")
    asked = METHODS if ALL in methods else methods or QUEUE
    queue = sorted(dict.fromkeys(asked), key=lambda name: QUEUE.index(name) if name in QUEUE else len(QUEUE))
    results = _train_all(context, queue, objectives, alpha, seed, steps, progress)
    trained = {name: results[name] for name in METHODS if name in results}
    policies = {REFERENCE: (np.repeat(problem.ref_log_probs[None], len(points), axis=0), 0.0)}
    policies |= {name: (result.log_probs, result.seconds) for name, result in trained.items()}
    mixed = [("exact experts", oracle.optimum(problem, np.eye(objectives)), 0.0)]
    if (soups := trained.get("rewarded-soups")) is not None:
        mixed.insert(0, ("logit-mixing", soups.vertices, soups.seconds))
    for who, experts, seconds in mixed:
        policies[f"{who}, per token"] = oracle.mix_tokens(experts, points, len(LETTERS)), seconds
        policies[f"{who}, per sequence"] = oracle.mix_sequences(experts, points), seconds
    policies[OPTIMUM] = oracle.optimum(problem, points), 0.0
    return {
        "seed": seed, "alpha": alpha, "objectives": objectives, "steps": steps,
        "weightings": points.tolist(),
        "methods": [_row(name, problem, points, *policy) for name, policy in policies.items()],
    }  # fmt: skip


def _row(name: str, problem: oracle.Problem, points: Array, log_probs: Array, seconds: float) -> dict[str, Any]:
    compared = oracle.score(problem, points, log_probs)
    frontier = oracle.regularized_rewards(problem, log_probs).tolist()
    return {"method": name, **compared._asdict(), "seconds": seconds, "regularized_rewards": frontier}


def _start_server() -> Any:
    """Start the process from which the others are forked: it reads torch, once for all, while this one does too."""
    preferred = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(preferred)
    if preferred == "forkserver":
        context.set_forkserver_preload(["clp_lightning.oracle.testbed"])
        forkserver.ensure_running()
    return context


def _train_all(
    context: Any,
    names: Sequence[str],
    objectives: int,
    alpha: float,
    seed: int,
    steps: int,
    progress: Callable[[str, int], None],
) -> dict[str, Trained]:
    told = context.SimpleQueue()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, initializer=_tell_to, initargs=(told,)) as pool:
        jobs: dict[str, Future[Trained]] = {
            name: pool.submit(_train, name, objectives, alpha, seed, steps) for name in names
        }
        waiting = set(jobs.values())
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            while not told.empty():
                progress(*told.get())
            for job in done:
                job.result()  # a failure ends the whole run now
        return {name: job.result() for name, job in jobs.items()}


_told: Any = None  # a worker's end of the queue: queues can be handed to a process only as it starts


def _tell_to(queue: Any) -> None:
    global _told
    _told = queue


def _train(name: str, objectives: int, alpha: float, seed: int, steps: int) -> Trained:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    from clp_lightning.oracle.testbed import METHODS, Testbed, read_out, training

    class Tell(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
            if parent is not None and not parent.is_alive():  # whoever asked for this is gone
                os._exit(1)
            if trainer.global_step % 20 == 0:
                _told.put((name, trainer.global_step))

    torch.set_num_threads(1)  # one core each: the methods run side by side
    parent = multiprocessing.parent_process()  # not the fork server, which would live on
    started, bed = time.process_time(), Testbed(objectives, seed)  # processor time: others may use this core
    policy = bed.train(METHODS[name], training(alpha, steps), callbacks=[Tell()], show_progress=False)
    seconds = time.process_time() - started
    return Trained(read_out(policy, grid(objectives)), read_out(policy, np.eye(objectives)), seconds)


def default_picture(alpha: float, objectives: int, seed: int) -> Path:
    """Return where the picture goes unless told otherwise."""
    return Path("reports") / f"oracle-alpha{alpha:g}-k{objectives}-seed{seed}.png"
