"""A server under load: `python -m bench.serving --model models/clp-full`; writes reports/serve_load.json.

64 clients at once with a weighting each, the same load at one weighting, and one request at a time with the 64 weightings
take turns on one `clp serve`. Afterwards every answer is compared with that of `SteerablePolicy.generate` for its text and
weighting alone. Prints medians over the turns and their ratios. "cpu s" is the server's processor time for a request, "others"
what other programs used of the cores meanwhile: the times of a busy machine count for little. "clients" is how many had
asked and waited, on average. Exit code 1 after errors or unequal answers.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `clp` does
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib
import http.client
import json
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from bench.serving.process import Served, busy_seconds, exchange
from clp_lightning import weightings
from clp_lightning.files import write_json
from clp_lightning.policy.loading import answering_dtype
from clp_lightning.policy.steerable import SteerablePolicy

BARS = {"fixed": 0.8, "single": 3.0}  # what the mixed load's requests per second must be of the others'


class Job(NamedTuple):
    """One request: which text at which weighting."""

    text: int
    weighting: int


class Outcome(NamedTuple):
    """What came of one request."""

    job: Job
    answer: str
    error: str | None
    tokens: int
    seconds: float


class Load:
    """Texts and weightings [N, K], and who asks for what; the last weighting is the one of the side `fixed`."""

    def __init__(self, texts: list[str], objectives: tuple[str, ...], clients: int) -> None:
        self.texts, self.objectives, self.clients = texts, objectives, clients
        drawn = weightings.dirichlet(np.random.default_rng(0), clients, len(objectives), concentration=1.0)
        self.weightings = np.concatenate([drawn, np.full((1, len(objectives)), 1 / len(objectives))])

    def jobs(self, side: str, count: int, start: int) -> list[Job]:
        """Return what is asked for, in order; `start` is the number of the first request."""
        every = range(start, start + count)
        return [self._job(number, self.clients if side == "fixed" else number % self.clients) for number in every]

    def _job(self, number: int, weighting: int) -> Job:
        return Job(number // self.clients % len(self.texts), weighting)

    def body(self, job: Job, model: str) -> dict[str, Any]:
        """Return the body of a greedy request."""
        shares = dict(zip(self.objectives, self.weightings[job.weighting].tolist(), strict=True))
        return {"model": model, "prompt": self.texts[job.text], "weighting": shares, "temperature": 0}

    def run(self, served: Served, side: str, jobs: list[Job]) -> list[Outcome]:
        """Let the clients ask side by side; who has an answer takes what is next, so that all are busy until the end."""
        clients, waiting = 1 if side == "single" else self.clients, iter(jobs)  # `next` of it is atomic
        with ThreadPoolExecutor(clients) as pool:
            each = pool.map(lambda _: self._client(served, waiting), range(clients))
            return [outcome for outcomes in each for outcome in outcomes]

    def _client(self, served: Served, jobs: Iterator[Job]) -> list[Outcome]:
        outcomes = []
        with contextlib.closing(served.connect()) as connection:
            for job in jobs:
                started, answer, error, tokens = time.perf_counter(), "", None, 0
                try:
                    status, said = exchange(connection, "POST", "/v1/completions", self.body(job, served.name))
                    if status == 200:
                        answer, tokens = said["choices"][0]["text"], said["usage"]["completion_tokens"]
                    else:
                        error = f"{status}: {said}"
                except (OSError, http.client.HTTPException, ValueError) as failure:
                    error = f"{type(failure).__name__}: {failure}"
                    connection.close()
                outcomes.append(Outcome(job, answer, error, tokens, time.perf_counter() - started))
        return outcomes


def measure(served: Served, load: Load, requests: int, turns: int, singles: int) -> tuple[dict, list[Outcome]]:
    """Run the sides in turns after a short one that is not counted; returns each side's figures and every outcome."""
    counts = {"mixed": requests // turns, "fixed": requests // turns, "single": singles}
    figures: dict[str, dict[str, list[float]]] = {
        side: {"requests_per_s": [], "tokens_per_s": [], "cpu_s": [], "others": [], "clients": [], "latency_s": []}
        for side in counts
    }
    every = load.run(served, "mixed", load.jobs("mixed", load.clients, 0)) if turns > 1 else []
    for turn in range(turns):
        for side, count in counts.items():
            started, busy, own, its = (
                time.perf_counter(),
                busy_seconds(),
                time.process_time(),
                served.processor_seconds(),
            )
            outcomes = load.run(served, side, load.jobs(side, count, turn * count))
            seconds, its = time.perf_counter() - started, served.processor_seconds() - its
            others = busy_seconds() - busy - its - (time.process_time() - own)
            figures[side]["cpu_s"].append(its / len(outcomes))
            figures[side]["requests_per_s"].append(sum(each.error is None for each in outcomes) / seconds)
            figures[side]["tokens_per_s"].append(sum(each.tokens for each in outcomes) / seconds)
            figures[side]["others"].append(max(0.0, others / seconds))
            figures[side]["clients"].append(sum(each.seconds for each in outcomes) / seconds)  # that wait, on average
            figures[side]["latency_s"] += [each.seconds for each in outcomes]
            every += outcomes
    return figures, every


def unequal(policy: SteerablePolicy, load: Load, outcomes: list[Outcome]) -> list[dict[str, str]]:
    """Return the answered requests whose answer is another than the policy's, alone and greedy."""
    alone: dict[Job, str] = {}
    for job in sorted({each.job for each in outcomes}):
        row = load.weightings[job.weighting][None]
        alone[job] = policy.generate([load.texts[job.text]], row, temperature=0.0)[0]
    return [
        {"text": load.texts[each.job.text], "served": each.answer, "alone": alone[each.job]}
        for each in outcomes if each.error is None and each.answer != alone[each.job]
    ]  # fmt: skip


def report(figures: dict, outcomes: list[Outcome], differing: list[dict[str, str]]) -> dict[str, Any]:
    """Return medians and ratios of the sides, errors and unequal answers."""
    sides = {}
    for side, values in figures.items():
        medians = {
            name: statistics.median(values[name])
            for name in ("requests_per_s", "tokens_per_s", "cpu_s", "others", "clients")
        }
        low, high = np.quantile(values["latency_s"], [0.5, 0.95]).tolist()
        sides[side] = {**medians, "latency_median_s": low, "latency_95_s": high, "turns": values}
    ratios = {
        other: {name: _ratio(sides["mixed"][name], sides[other][name]) for name in ("requests_per_s", "tokens_per_s")}
        for other in BARS
    }
    errors = [each.error for each in outcomes if each.error]
    return {
        "requests": len(outcomes), "errors": len(errors), "first_errors": errors[:5], "unequal": len(differing),
        "first_unequal": differing[:5], "compared": len({each.job for each in outcomes}), "ratios": ratios, "bars": BARS,
        "sides": sides,
    }  # fmt: skip


def _ratio(mixed: float, other: float) -> float:
    return mixed / other if other else 0.0  # nothing was answered: no bar is met


def main(
    model: Annotated[Path, typer.Option(exists=True, help="Folder of the policy.")] = Path("models/clp-full"),
    documents: Annotated[Path, typer.Option(exists=True, help="Texts to ask about.")] = Path(
        "data/corpus/test.parquet"
    ),
    texts: Annotated[int, typer.Option(min=1, help="Number of different texts.")] = 4,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once, each with a weighting of its own.")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the mixed load, and of the fixed one.")] = 1000,
    turns: Annotated[int, typer.Option(min=1, help="Turns that they are spread over.")] = 4,
    singles: Annotated[int, typer.Option(min=1, help="Requests one at a time, in each turn.")] = 32,
    dtype: Annotated[str, typer.Option(help="Precision of server and comparison.")] = "auto",
    rows: Annotated[int | None, typer.Option(min=1, help="The server's --rows; its default by default.")] = None,
    out: Annotated[Path, typer.Option(help="Report to write.")] = Path("reports/serve_load.json"),
) -> None:
    """Measure a server under load; see the module's text."""
    chosen = pd.read_parquet(documents).document.drop_duplicates().sample(texts, random_state=0).tolist()
    objectives = tuple(json.loads((model / "clp.json").read_text())["objectives"])
    load = Load(chosen, objectives, clients)
    options = ["--dtype", dtype, *(["--rows", str(rows)] if rows else [])]
    with Served(model, *options) as served:
        figures, outcomes = measure(served, load, requests, turns, singles)
    policy = SteerablePolicy.from_pretrained(model, dtype=answering_dtype(dtype))
    found = report(figures, outcomes, unequal(policy, load, outcomes))
    found["machine"] = {
        "cores": os.cpu_count(),
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "clients": clients,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)
    _print(found, Console())
    sys.exit(1 if found["errors"] or found["unequal"] else 0)


def _print(found: dict[str, Any], console: Console) -> None:
    machine, ratios = found["machine"], found["ratios"]
    title = f"{machine['clients']} clients, {machine['cores']} cores, {machine['dtype']}"
    table = Table(
        "load", "requests/s", "tokens/s", "median s", "95 % s", "cpu s", "others' cores", "clients", title=title
    )
    for side, row in found["sides"].items():
        names = ("requests_per_s", "tokens_per_s", "latency_median_s", "latency_95_s", "cpu_s", "others", "clients")
        table.add_row(side, *(f"{row[name]:.2f}" for name in names))
    console.print(table)
    for side, bar in found["bars"].items():
        by_request, by_token = ratios[side]["requests_per_s"], ratios[side]["tokens_per_s"]
        met = "met" if by_request >= bar else "missed"
        console.print(
            f"mixed / {side}: {by_request:.2f} in requests, {by_token:.2f} in tokens; bar {bar}: {met}", highlight=False
        )
    console.print(
        f"{found['requests']} requests: {found['errors']} errors; {found['unequal']} answers differ from generate "
        f"({found['compared']} different ones compared)", highlight=False,
    )  # fmt: skip
