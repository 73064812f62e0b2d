"""Run the benchmark: `python -m bench [--rounds N] [--only a,b] [--tiny]`; writes reports/bench.json and prints a table."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `clp` does: threads that wait should not starve the others
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.steering import measures, rloo
from bench.steering.subjects import subject
from clp_lightning.files import write_json
from clp_lightning.policy.loading import hardware_dtype


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted turns of every side (after one that is not)")
    parser.add_argument("--only", default="a,b,c,d,e,f", help="entries, e.g. a,b")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model: shows that it runs, nothing else")
    parser.add_argument("--out", type=Path, default=Path("reports/bench.json"))
    options = parser.parse_args()
    base, rounds, tiny = subject(options.tiny), options.rounds, options.tiny
    entries: dict[str, list[Callable[[], dict[str, Any]]]] = {
        "a": [lambda: measures.generation(base, rounds)],
        "b": [lambda: measures.forward_backward(base, rounds)],
        "c": [lambda: rloo.training_step(base, rounds)],
        "d": [lambda: measures.sweep(base, max(1, rounds // 2), 4), lambda: measures.sweep(base, 1, 48)],
        "e": [lambda: measures.arithmetic(base, rounds)],
        "f": [lambda: measures.objectives(base, rounds, tiny)],
    }
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(entries):
        parser.error(f"unknown entries {sorted(unknown)}; choose among {', '.join(entries)}")
    console, results = Console(), []
    for name in chosen:
        for measure in entries[name]:
            with Console(stderr=True).status(f"measuring {name}"):
                results.append(measure())
            console.print(_line(results[-1]), highlight=False)
    machine = {
        "processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "dtype": str(hardware_dtype()).removeprefix("torch."), "tiny": tiny,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"machine": machine, "entries": results})
    _table(results, machine, console)


def _line(result: dict[str, Any]) -> str:
    sides = ", ".join(f"{side} {seconds:.3f} s" for side, seconds in result["medians_s"].items())
    shares = [f"{name} {share:.0%}" for name, share in result.get("profile", {}).items()]
    profile = f"\n    of one step's processor time: {', '.join(shares)}" if shares else ""
    return f"({result['entry']}) {result['ratio']:.2f}: {sides}{profile}"


def _table(results: list[dict[str, Any]], machine: dict[str, Any], console: Console) -> None:
    table = Table(
        "", "ratio of medians", "bar", "met", "what", title=f"{machine['threads']} threads, {machine['dtype']}"
    )
    for result in results:
        larger, bar = result.get("larger_is_better", False), result["bar"]
        met = result["ratio"] >= bar if larger else result["ratio"] <= bar
        sign = ">=" if larger else "<="
        table.add_row(
            result["entry"], f"{result['ratio']:.2f}", f"{sign} {bar}", "yes" if met else "no", result["what"]
        )
    console.print(table)


if __name__ == "__main__":
    main()
