"""Scheduled retraining under fire: `python -m bench.soak --runs 20 --seed 0`.

A Prefect server and worker of its own (`make server`, `make worker`), a copy of the recipe smoke, and one retraining per
training seed, each scheduled on the server and hit with kill -9 at a random time: the flow, the worker, the running
stage, or the publisher while it builds the store. After every hit the next scheduled run has to finish the work. All the
while another process reads the store as the dashboard does. At the end the same seeds run undisturbed in a second
workspace, and both stores must hold the same.

Prints JSON; exit code 1 unless every store was consistent, no process was orphaned, no model was half-written and no read
failed. The schedule of kills follows from `--seed`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.soak.checks import compare_stores, half_written, inconsistent, orphans
from bench.soak.server import SoakServer
from clp_lightning.project.workspace import prepare

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("flow", "worker", "stage", "publisher")
TOKEN = "CLP_SOAK_RUN"  # in the environment of everything that the soak starts


def main(
    runs: Annotated[int, typer.Option(min=1, help="Retrainings.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is killed when.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where to work; a temporary folder by default.")] = None,
    control: Annotated[bool, typer.Option(help="Run the same seeds undisturbed and compare the stores.")] = True,
) -> None:
    """Soak the retraining; see the module's text."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(folder or temporary).resolve()
        try:
            report = soak(work, runs, seed)
            if control:
                report["differences_from_undisturbed"] = undisturbed(work, runs)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
    print(json.dumps(report, indent=2))
    bad = ("inconsistent_stores", "orphans", "half_written_models", "failed_reads", "differences_from_undisturbed")
    sys.exit(1 if any(report.get(name) for name in bad) else 0)


def soak(work: Path, runs: int, seed: int) -> dict[str, Any]:
    """Run and kill; returns what was done and everything that was found wrong."""
    dice = random.Random(seed)
    workspace = prepare("smoke", work / "disturbed", root=ROOT)
    os.environ[TOKEN] = str(os.getpid())
    os.environ["OMP_NUM_THREADS"] = "1"  # two stages side by side; sums round alike in the undisturbed runs
    report: dict[str, Any] = {
        "runs": 0, "scheduled": 0, "kills": dict.fromkeys(VICTIMS, 0), "seconds": 0.0, "inconsistent_stores": [],
        "orphans": [], "half_written_models": [],
    }  # fmt: skip
    started = time.monotonic()
    prefect = SoakServer(ROOT, work / "prefect")
    reader = None
    try:
        prefect.start()
        for number in range(runs):
            set_training_seed(workspace, number)
            for victim, seconds in hits(dice):
                say(f"run {number}: {victim} dies after {seconds:.0f} s")
                run = prefect.schedule(workspace)
                report["scheduled"] += 1
                report["kills"][victim] += kill(victim, seconds, run, prefect, workspace)
                report["orphans"] += orphans(TOKEN, prefect, after=15)
                report["half_written_models"] += half_written(workspace)
                report["inconsistent_stores"] += inconsistent(workspace, None)
            report["scheduled"] += prefect.until_completed(workspace)
            report["runs"] += 1
            report["orphans"] += orphans(TOKEN, prefect, after=15)
            report["half_written_models"] += half_written(workspace)
            report["inconsistent_stores"] += inconsistent(workspace, number + 1)
            if reader is None:
                reader = subprocess.Popen(
                    [sys.executable, "-c", "from bench.soak.checks import read_for_ever; read_for_ever()"],
                    cwd=ROOT, env={**os.environ, "SOAK_STORE": str(workspace / "frontier.duckdb"), TOKEN: ""},
                    stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
    finally:
        prefect.stop()
        if reader is not None:
            reader.send_signal(signal.SIGTERM)
            report |= json.loads(reader.communicate(timeout=60)[0])
    return report | {"seconds": round(time.monotonic() - started)}


def hits(dice: random.Random) -> Iterator[tuple[str, float]]:
    """Draw one or two deaths of a run: who, and after how many seconds of it."""
    for _ in range(dice.choice((1, 1, 2))):
        yield dice.choice(VICTIMS), dice.uniform(3, 30)


def kill(victim: str, seconds: float, run: str, prefect: SoakServer, workspace: Path) -> int:
    """Kill -9 one process of a run after some seconds of it; returns 0 when the run had ended before. Waits for the run's end."""
    deadline = time.monotonic() + seconds
    hit = 0
    while not prefect.ended(run):
        if time.monotonic() >= deadline and not hit:
            hit = prefect.kill(victim, run, workspace)
            if hit and victim == "worker":
                prefect.restart_worker()
        if hit and not prefect.members(run):
            break  # nobody is left to tell the server
        time.sleep(0.2)
    prefect.give_up(run)
    return hit


def set_training_seed(workspace: Path, number: int) -> None:
    """Give the pipeline something to do: another training seed trains, evaluates and publishes anew."""
    path = workspace / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = lines.index("training:\n")
    assert lines[at + 1].startswith("  seed: ")
    lines[at + 1] = f"  seed: {number}\n"
    path.write_text("".join(lines), encoding="utf-8")


def undisturbed(work: Path, runs: int) -> list[str]:
    """Run the same seeds with nothing but `dvc repro` and `clp promote`; returns what differs between the stores."""
    workspace = prepare("smoke", work / "undisturbed", root=ROOT)
    for number in range(runs):
        set_training_seed(workspace, number)
        for command in (["-m", "dvc", "repro", "--quiet"], ["-m", "clp_lightning.cli", "promote"]):
            subprocess.run([sys.executable, *command], cwd=workspace, check=True, stdout=subprocess.DEVNULL)
        say(f"undisturbed run {number} done")
    return compare_stores(work / "disturbed" / "frontier.duckdb", workspace / "frontier.duckdb")


def say(text: str) -> None:
    """Tell on standard error how far it is."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
