"""The comparison of a run's methods: as JSON, as tables for the terminal, and as one picture."""

import csv
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.files import atomic, write_json
from clp_lightning.store import MONITORS, REFERENCE, Store

# Okabe & Ito's palette, told apart with any colour vision; shapes differ too, for print in grey.
METHOD_STYLES: dict[str, tuple[str, str]] = {
    REFERENCE: ("#6E6E6E", "star"),
    "clp-full": ("#0072B2", "circle"),
    "clp-attn": ("#56B4E9", "square"),
    "clp-logit": ("#009E73", "diamond"),
    "clp-prompt": ("#CC79A7", "triangle-up"),
    "rewarded-soups": ("#D55E00", "triangle-down"),
    "logit-mixing": ("#E69F00", "x"),
    "morlhf": ("#000000", "cross"),
}
MONITOR_NAMES = dict(zip(MONITORS, ("ROUGE-L", "coverage", "KL", "length", "dist-2"), strict=True))


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker (plotly's name) of each method, the same in every picture; unknown ones take unused styles."""
    methods = list(methods)
    free = [style for name, style in METHOD_STYLES.items() if name not in methods and name != REFERENCE]
    spare = itertools.cycle(free or list(METHOD_STYLES.values())[1:])
    return {method: METHOD_STYLES.get(method) or next(spare) for method in methods}


def comparison(store: Store, run: str | None = None) -> dict[str, Any]:
    """Everything that is reported about one run (the latest by default): the contract of `clp frontier --json`.

    JSON-able values. `weighting` is null for a policy that takes none; intervals are 95 %, from a bootstrap over
    prompts. Raises `ClpError` when there is no such run.
    """
    row = store.run(run)
    run_id, objectives = row["run_id"], row["objectives"]
    metrics, points = store.metrics(run_id), store.points(run_id)
    methods = []
    for _, cost in store.methods(run_id).iterrows():
        method = cost.pop("method")
        own = metrics[metrics.method == method]
        volume = own[own.metric == "hypervolume"].iloc[0]
        methods.append(
            {
                "method": method,
                "hypervolume": float(volume.value),
                "hypervolume_interval": [float(volume.low), float(volume.high)],
                "dominated_share": {
                    row.target: {"value": float(row.value), "interval": [float(row.low), float(row.high)]}
                    for _, row in own[own.metric == "dominated_share"].iterrows()
                },
                "steerability": {
                    row.target: float(row.value) for _, row in own[own.metric == "steerability"].iterrows()
                },
                "points": [_point(point, objectives) for _, point in points[points.method == method].iterrows()],
                "cost": {name: _number(value) for name, value in cost.items()},
            }
        )
    return {
        "run": run_id,
        "published_at": row["published_at"].isoformat(timespec="seconds") + "Z",
        "code_commit": None if pd.isna(row["code_commit"]) else row["code_commit"],
        "seed": row["seed"],
        "corpus_hash": row["corpus_hash"],
        "objectives": objectives,
        "reference_point": dict(zip(objectives, row["reference_point"], strict=True)),
        "normalization": row["normalization"],
        "prompts": row["prompts"],
        "bootstrap_draws": row["bootstrap_draws"],
        "methods": methods,
        "comparisons": [
            {
                "methods": [pair.method_a, pair.method_b],
                "statistic": pair.statistic,
                "difference": float(pair.difference),
                "interval": [float(pair.low), float(pair.high)],
                "probability": float(pair.probability),
            }
            for _, pair in store.comparisons(run_id).iterrows()
        ],
    }


def print_table(comparison: Mapping[str, Any], console: Console) -> None:
    """Print the comparison: every point, every method, paired differences, and what is needed to reproduce the axes."""
    objectives = comparison["objectives"]
    title = f"Run {comparison['run']}: mean rewards [95 % interval]"
    if console.width >= WIDE:
        console.print(_points_table(comparison, title, rewards=True, monitors=True))
    else:
        console.print(_points_table(comparison, title, rewards=True, monitors=False))
        console.print(_points_table(comparison, "Monitored, never optimized", rewards=False, monitors=True))
    console.print(f"w = {' : '.join(objectives)}. Rewards are standardized, higher is better.", style="dim")

    summary = Table(title="Methods", **_LOOK)
    summary.add_column("method", no_wrap=True)
    summary.add_column("hypervolume", justify="right", no_wrap=True)
    for name in objectives:
        summary.add_column(
            f"tau\n{name}", justify="right", overflow="fold", max_width=None if console.width >= WIDE else 9
        )
    for name in ("rollouts", "train", "parameters", "models"):
        summary.add_column(name, justify="right")
    for method in comparison["methods"]:
        cost, taus = method["cost"], method["steerability"]
        summary.add_row(
            method["method"],
            _with_interval(method["hypervolume"], method["hypervolume_interval"]),
            *(f"{taus[name]:.2f}" if name in taus else "–" for name in objectives),
            *(_count(cost["rollouts"]), _seconds(cost["train_seconds"])),
            *(_count(cost["stored_parameters"]), _count(cost["models"])),
        )
    console.print(summary)
    console.print("tau: does more weight buy more reward? 1 always, 0 never (Kendall).", style="dim")

    console.print(Text("\nHypervolume, paired over prompts", style="bold"))
    for pair in comparison["comparisons"]:
        if REFERENCE not in pair["methods"] or len(comparison["comparisons"]) == 1:
            console.print(Text(f"  {difference_sentence(pair)}"))
    point = ", ".join(f"{name} {value:g}" for name, value in comparison["reference_point"].items())
    scales = ", ".join(f"{n} ({s['mean']:.4g}, {s['std']:.4g})" for n, s in comparison["normalization"].items())
    console.print(
        Text(
            f"\nHypervolume above the reference point {point}. Normalization (mean, std): {scales}.\n"
            f"Seed {comparison['seed']}, corpus {comparison['corpus_hash']}, {comparison['prompts']} prompts, "
            f"{comparison['bootstrap_draws']} resamples. {CAVEAT}",
            style="dim",
        )
    )


def _points_table(comparison: Mapping[str, Any], title: str, *, rewards: bool, monitors: bool) -> Table:
    """A row per point, with the columns that are asked for."""
    objectives = comparison["objectives"]
    table = Table(title=title, **_LOOK)
    table.add_column("method", no_wrap=True)
    table.add_column("w", justify="right", no_wrap=True)
    for name in [*(objectives if rewards else ()), *(MONITOR_NAMES.values() if monitors else ())]:
        table.add_column(name, justify="right", no_wrap=True)
    for method in comparison["methods"]:
        for i, point in enumerate(method["points"]):
            cells = [_with_interval(point["rewards"][name], point["intervals"][name]) for name in objectives]
            watched = [_decimals(point["monitors"][name], 1 if name == "length" else 2) for name in MONITORS]
            chosen = [*(cells if rewards else ()), *(watched if monitors else ())]
            table.add_row("" if i else method["method"], weighting_label(point["weighting"]), *chosen)
        table.add_section()
    return table


WIDE = 112  # columns in which rewards with intervals and monitors of two objectives fit side by side
CAVEAT = "Intervals cover the choice of test prompts, not the spread between training runs."
_LOOK: dict[str, Any] = {"box": None, "title_justify": "left", "header_style": "bold", "padding": (0, 1, 0, 0)}


def difference_sentence(pair: Mapping[str, Any]) -> str:
    """One paired difference in words, with the method that is ahead first."""
    (a, b), difference, (low, high), ahead = (
        pair["methods"],
        pair["difference"],
        pair["interval"],
        pair["probability"],
    )
    if difference < 0:
        a, b, difference, low, high, ahead = b, a, -difference, -high, -low, 1 - ahead
    verdict = "" if low > 0 else "; the interval includes 0, so neither is shown to be better"
    return (
        f"{a} encloses {difference:.2f} more than {b}, 95 % interval [{low:.2f}, {high:.2f}], "
        f"ahead in {ahead:.0%} of resamples{verdict}"
    )


def weighting_label(weighting: Mapping[str, float] | None) -> str:
    """Weights in the order of the objectives, as in `0.3 : 0.7`; a dash for a policy that takes none."""
    if weighting is None:
        return "–"
    separator = " : " if len(weighting) <= 2 else ":"
    return separator.join(f"{round(value, 2):g}" for value in weighting.values())


def write_report(comparison: Mapping[str, Any], folder: Path | str) -> None:
    """Write `frontier.json`, `frontier.png` and `points.csv` (one row per point, for `dvc plots`) into `folder`."""
    from clp_lightning.picture import picture

    folder, objectives = Path(folder), comparison["objectives"]
    write_json(folder / "frontier.json", comparison)
    picture(comparison, folder / "frontier.png")
    with atomic(folder / "points.csv") as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", *(f"w:{name}" for name in objectives), *objectives, *MONITORS])
        for method in comparison["methods"]:
            for point in method["points"]:
                weights = [(point["weighting"] or {}).get(name, "") for name in objectives]
                rewards = [point["rewards"][name] for name in objectives]
                writer.writerow([method["method"], *weights, *rewards, *(point["monitors"][name] for name in MONITORS)])


def _point(point: pd.Series, objectives: Sequence[str]) -> dict[str, Any]:
    weighting = {name: _number(point[f"w:{name}"]) for name in objectives}
    return {
        "weighting": None if None in weighting.values() else weighting,
        "rewards": {name: float(point[f"reward:{name}"]) for name in objectives},
        "intervals": {name: [float(point[f"low:{name}"]), float(point[f"high:{name}"])] for name in objectives},
        "monitors": {name: _number(point[name]) for name in MONITORS},
    }


def _number(value: Any) -> float | None:
    return float(value) if pd.notna(value) and math.isfinite(value) else None


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f},{interval[1]:.2f}]".replace("-0.00", "0.00")


def _decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value / 60:.1f} min" if value >= 90 else f"{value:.0f} s"
