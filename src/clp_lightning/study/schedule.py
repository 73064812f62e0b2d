"""Runs side by side: each a process with its own threads, its rows added to the table as it ends."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

from clp_lightning.errors import ClpError, plural
from clp_lightning.files import locked, read_json
from clp_lightning.progress import Jobs, duration
from clp_lightning.study import folders, table
from clp_lightning.study.definition import questions
from clp_lightning.study.runs import Run, outstanding
from clp_lightning.study.worker import BUSY

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a study runs and writes: the project, the folder of its work, and the table (runs.csv)."""

    root: Path
    work: Path
    table: Path


def _check_fresh(runs: Sequence[Run], tables: table.Tables, path: Path) -> None:
    """Raise `ClpError` when a training seed was used on the other split with the same recipe: tests are on fresh seeds."""
    used = {(row["recipe"], row["seed"], row["split"]): row["study"] for row in tables.runs}
    for run in runs:
        other = "test" if run.split == "validation" else "validation"
        if study := used.get((run.recipe, run.seed, other)):
            raise ClpError(
                f"seeds: {run.seed} was used by study {study} on the split {other} of recipe {run.recipe} ({path}); what is "
                "chosen and what is tested must not share training seeds: list others"
            )


def run_study(runs: Sequence[Run], place: Place, *, jobs: int, threads: int) -> None:
    """Run what is not in the table yet, `jobs` at a time with `threads` threads each.

    A run that was interrupted continues from its last checkpoint; one that another command is at is left to it. Raises
    `ClpError` at the end when runs failed: the others are done.
    """
    tables = table.read(place.table)
    todo = outstanding(runs, tables, place.table)
    outstanding(
        [run.trained for run in todo if run.trained], tables, place.table
    )  # trained with other settings: refused
    _check_fresh(todo, tables, place.table)
    display = Jobs(f"study {runs[0].study}", len(runs), len(runs) - len(todo))
    with display, _Processes(threads) as processes:
        for run in {(each.shared_hash, each.split): each for each in todo}.values():
            _share(run, place, processes, display, jobs * threads)
        failed, elsewhere = _run_all(todo, place, processes, display, jobs)
    if elsewhere:
        print(f"{plural(elsewhere, 'run')} left to another command that is at work on this study")
    if failed:
        raise ClpError(
            f"{plural(failed, 'run')} of study {runs[0].study} failed, their lines above say why; run it again"
        )


def _run_all(todo: Sequence[Run], place: Place, processes: "_Processes", display: Jobs, jobs: int) -> tuple[int, int]:
    """Run all and return how many failed, and how many another command is at."""
    commit, waiting = _commit(place.root), list(todo)
    failed: set[Any] = set()
    elsewhere: set[Any] = set()
    running: dict[subprocess.Popen[bytes], tuple[Run, Path]] = {}
    while waiting or running:
        while len(running) < jobs and (run := _startable(waiting, [each for each, _ in running.values()])):
            waiting.remove(run)
            tables = table.read(place.table)
            if tables.find(run.key):  # another command was faster
                display.advance()
                continue
            shared = folders.shared_folder(run, place.work)
            if run.trained is not None and run.trained.key in elsewhere and not tables.find(run.trained.key):
                elsewhere.add(run.key)
                continue
            if run.trained is not None and (problem := _untrained(run.trained, place, tables, failed)):
                failed.add(run.key)
                display.say(f"{run.name}: failed: {problem}")
                continue
            try:
                with locked(place.work):  # two commands may come to the same run
                    folder = folders.prepare_run(run, place.work, place.root, commit)
            except BlockingIOError:
                elsewhere.add(run.key)
                continue
            running[processes.start("run", folder, str(shared.resolve()))] = run, folder
        display.running([run.name for run, _ in running.values()])
        time.sleep(POLL_SECONDS)
        for process in [each for each in running if each.poll() is not None]:
            run, folder = running.pop(process)
            processes.ended(process)
            if process.returncode == BUSY:
                elsewhere.add(run.key)
            elif process.returncode or not (folder / folders.RESULT).is_file():
                failed.add(run.key)
                display.say(f"{run.name}: failed: {last_line(folder / folders.LOG)} ({folder / folders.LOG})")
            else:
                result = read_json(folder / folders.RESULT, remedy=f"delete {folder}")
                table.add(place.table, result["run"], result["points"], result["axes"])
                tables = table.read(place.table)
                table.write_ledger(place.table, tables, questions(place.root))
                display.advance()
                display.say(
                    _line(result["run"], run, tables, [*waiting, *(each for each, _ in running.values())], jobs)
                )
    return len(failed), len(elsewhere)


def _startable(waiting: Sequence[Run], running: Sequence[Run]) -> Run | None:
    """Return the first run that waits for no other one; a run that trains nothing waits for the one whose policy it takes."""
    pending = {run.key for run in (*waiting, *running)}
    return next((run for run in waiting if run.trained is None or run.trained.key not in pending), None)


def _untrained(run: Run, place: Place, tables: table.Tables, failed: Collection[Any]) -> str | None:
    """Say why the policy of a run is not there to decode from; None when it is."""
    row = tables.find(run.key)
    if row is None and run.key in failed:
        return f"so did {run.name}, whose policy it takes"
    if row is None:
        return f"it takes the policy of {run.name}, which is not done; run that too, e.g. with --arm {run.arm}"
    try:
        folders.check_trained(run, place.work, row)
    except ClpError as error:
        return str(error)
    return None


def _share(run: Run, place: Place, processes: "_Processes", display: Jobs, threads: int) -> None:
    """Run what the runs of a recipe share, once; raises `ClpError` when that fails."""
    with locked(place.work):
        folder = folders.prepare_shared(run, place.work, place.root)
    if folders.is_shared(folder, run.config, run.split):
        return
    started = time.monotonic()
    display.say(f"{run.recipe}: corpus, reference policy, learned rewards and normalization, once for all runs")
    process = processes.start("share", folder, run.split, threads)
    process.wait()
    processes.ended(process)
    if process.returncode:
        log = folder / folders.LOG
        raise ClpError(f"the stages that runs of recipe {run.recipe} share failed: {last_line(log)} ({log})")
    display.say(f"{run.recipe}: what its runs share is there, {duration(time.monotonic() - started)}")


def last_line(log: Path) -> str:
    """Return the last line of a log without the command's own prefix."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("clp: error: ") if lines else "it ended without a word"


def _line(row: dict[str, Any], run: Run, tables: table.Tables, left: Sequence[Run], jobs: int) -> str:
    """Say what a run gave, and how long the others may take at the rate of those that are done."""
    mean = row["mean_j"]
    value = "" if mean is None else f"J {mean:.3f} ({row['mean_j_error']:.3f}), "
    line = f"{run.name}: {value}KL {round(row['mean_kl'], 2) + 0.0:.2f}, {row['rollouts']} rollouts in {duration(row['seconds'])}"
    known = [each for each in tables.runs if each["study"] == run.study and each["machine"] == row["machine"]]
    rates = {(each["panel"], each["settings"].startswith("of=")): each["seconds"] / each["rollouts"] for each in known}
    todo = [((each.panel, each.trained is not None), each.rollouts) for each in left]
    if left and all(kind in rates for kind, _ in todo):
        line += f"; about {duration(sum(rates[kind] * rollouts for kind, rollouts in todo) / jobs)} left"
    return line


def _commit(root: Path) -> str:
    """Return the project's commit, with a + when its files differ from it; a dash where there is no git."""
    try:
        done = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", "src", "params.yaml", "conf"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "-"
    return done[0] + ("+" if done[1] else "")


class _Processes(contextlib.AbstractContextManager["_Processes"]):
    """The processes of a study: each with its share of the threads and a log, none of which outlives the command."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.open: dict[subprocess.Popen[bytes], IO[bytes]] = {}

    def start(self, what: str, folder: Path, of: str, threads: int | None = None) -> subprocess.Popen[bytes]:
        """Start the worker of a folder: `run` with its shared folder, or `share` with a split."""
        count = str(threads or self.threads)
        log = (folder / folders.LOG).open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "clp_lightning.study.worker", what, str(folder.resolve()), of],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # an interrupt reaches the command first, which then ends its workers
        )
        self.open[process] = log
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Let go of a worker that has ended."""
        self.open.pop(process).close()
        assert process.stdin is not None
        process.stdin.close()

    def __exit__(self, *_: object) -> None:
        """End what still runs: a worker ends with its standard input."""
        for process in list(self.open):
            self.ended(process)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
