"""Several runs as tables for the terminal and as JSON: one against another, and what holds over training seeds."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.report.cells import LOOK, decimals, with_interval
from clp_lightning.report.labels import BASELINES, CAVEAT, MEASURE_NAMES

SHOWN = (
    "mean_j",
    "hypervolume_above_reference",
    "worst_objective",
    "hypervolume",
)  # over seeds, the first is the first


def print_against(result: Mapping[str, Any], console: Console) -> None:
    """Print what `runs.against` returns."""
    table = Table(title=f"Run {result['run']} against {result['against']}", **LOOK)
    for name in ("method", "measure", "value", "against", "difference", "P(more)"):
        table.add_column(name, justify="left" if name in ("method", "measure") else "right", no_wrap=True)
    for row in result["methods"]:
        kl = row["measures"].get("mean_kl")
        for number, (what, found) in enumerate((w, row["measures"][w]) for w in SHOWN if w in row["measures"]):
            table.add_row(
                "" if number else row["method"], MEASURE_NAMES[what], f"{found['value']:.2f}", f"{found['against']:.2f}",
                with_interval(found["difference"], found["interval"]), f"{found['probability']:.0%}",
            )  # fmt: skip
        if kl is not None:
            table.add_row("", MEASURE_NAMES["mean_kl"], f"{kl['value']:.2f}", f"{kl['against']:.2f}",
                          with_interval(kl["difference"], kl["interval"]), "")  # fmt: skip
    console.print(table)
    strength = "" if result["alpha"] is None else f"J of both at alpha {result['alpha']:g}. "
    console.print(Text(strength + CAVEAT, style="dim"))


def seeds_as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what `runs.over_seeds` returns into JSON-able values."""
    return {
        "seeds": result["seeds"],
        "left_out": list(result.get("left_out", ())),
        "methods": [
            {
                "method": name,
                "measures": {
                    what: _estimate(value) | {"each": result["each"][name][what]} for what, value in own.items()
                },
            }
            for name, own in result["methods"].items()
        ],
        "differences": [
            {"methods": list(pair), "measures": {what: _estimate(value) for what, value in own.items()}}
            for pair, own in result["differences"].items()
        ],
        **{
            kind: [
                {"method": name, "share": share, "points": surface.tolist()}
                for name, surfaces in result[kind].items()
                for share, surface in surfaces.items()
            ]
            for kind in ("attainment", "regularized_attainment")
        },
    }


def _estimate(value: Any) -> dict[str, Any]:
    return {"value": value.value, "interval": [value.low, value.high], "probability": value.probability}


def print_seeds(result: Mapping[str, Any], console: Console) -> None:
    """Print what `seeds_as_json` returns: a table per measure, mean J first."""
    there = [row["method"] for row in result["methods"]]
    baselines = [name for name in BASELINES if name in there]
    measures = [what for what in SHOWN if all(what in row["measures"] for row in result["methods"])]
    for what in measures:
        seeds = ", ".join(map(str, result["seeds"]))
        name = MEASURE_NAMES[what]
        title = f"{name[0].upper()}{name[1:]} over training seeds {seeds}"
        console.print(_over_seeds(result, what, title, baselines))
    one = len(result["seeds"]) == 1
    about = (
        "one seed: the spread between trainings is not in them"
        if one
        else "training seeds, groups and prompts together"
    )
    console.print(
        Text(f"95 % intervals over {about}; the probability that the sign is right in brackets.", style="dim")
    )
    for line in result["left_out"]:
        console.print(Text(line, style="bold"))


def _over_seeds(result: Mapping[str, Any], what: str, title: str, baselines: list[str]) -> Table:
    table = Table(title=title, **LOOK)
    for name in ("method", "mean", "each seed", "KL", *(f"ahead of {name} by" for name in baselines)):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name in ("method", "KL"))
    for row in result["methods"]:
        own, kl = row["measures"][what], row["measures"].get("mean_kl")
        table.add_row(
            row["method"], with_interval(own["value"], own["interval"]), " ".join(f"{value:.2f}" for value in own["each"]),
            decimals(None if kl is None else kl["value"], 2),
            *(_difference(result, what, row["method"], baseline) for baseline in baselines),
        )  # fmt: skip
    return table


def _difference(result: Mapping[str, Any], what: str, method: str, baseline: str) -> str:
    for row in result["differences"]:
        found = row["measures"].get(what)
        if found is None:
            continue
        low, high = found["interval"]
        if row["methods"] == [method, baseline]:
            return f"{with_interval(found['value'], [low, high])} ({found['probability']:.0%})"
        if row["methods"] == [baseline, method]:
            return f"{with_interval(-found['value'], [-high, -low])} ({1 - found['probability']:.0%})"
    return "–"
