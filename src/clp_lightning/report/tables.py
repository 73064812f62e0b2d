"""The comparison of a run's methods as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.report.labels import CAVEAT, MONITOR_NAMES, difference_sentence, weighting_label
from clp_lightning.store.queries import MONITORS, REFERENCE

WIDE = 112  # columns in which rewards with intervals and monitors of two objectives fit side by side
INTERVAL, NUMBER = len("[-0.00,-0.00]"), len("-123.4")  # columns of the widest text of a cell that is not broken
_LOOK: dict[str, Any] = {"box": None, "title_justify": "left", "header_style": "bold", "padding": (0, 1, 0, 0)}
BASELINES = ("rewarded-soups", "clp-prompt")  # every method is set against them
FEW = 4  # methods whose points are all shown without being asked for


def print_table(comparison: Mapping[str, Any], console: Console, *, points: bool = False) -> None:
    """Print methods, dominance, paired differences, and what is needed to reproduce the axes; with `points` every point.

    A few methods show their points unasked.
    """
    objectives, methods = comparison["objectives"], comparison["methods"]
    if points or len(methods) <= FEW:
        print_points(comparison, f"Run {comparison['run']}: mean rewards [95 % interval]", console)
        console.print(f"w = {' : '.join(objectives)}. Rewards are standardized, higher is better.", style="dim")
    title = "Methods" if points or len(methods) <= FEW else f"Run {comparison['run']}"
    if console.width >= WIDE and len(objectives) <= 2:
        console.print(_methods_table(comparison, title, measures=True, costs=True))
    else:
        console.print(_methods_table(comparison, title, measures=True, costs=False))
        console.print(_methods_table(comparison, "Costs", measures=False, costs=True))
    console.print(
        "tau: does more weight buy more reward? 1 always, 0 never (Kendall). passes: of the model, per token.",
        style="dim",
    )
    for baseline in BASELINES:
        if len(methods) > FEW and any(method["method"] == baseline for method in methods):
            console.print(_against_table(comparison, baseline, wide=console.width >= WIDE))
    _print_differences(comparison, console)
    for name, reason in comparison["left_out"].items():
        console.print(Text(f"\nLeft out: {name}. {reason}", style="bold"))
    point = ", ".join(f"{name} {value:g}" for name, value in comparison["reference_point"].items())
    scales = ", ".join(f"{n} ({s['mean']:.4g}, {s['std']:.4g})" for n, s in comparison["normalization"].items())
    console.print(
        Text(
            f"\nHypervolume above the reference point {point}. Normalization (mean, std): {scales}.\n"
            f"Seed {comparison['seed']}, training seed {_count(comparison['training_seed'])}, corpus "
            f"{comparison['corpus_hash']}, {comparison['prompts']} prompts, {comparison['bootstrap_draws']} resamples. "
            f"{_budget(methods)} {CAVEAT}",
            style="dim",
        )
    )


def print_against(result: Mapping[str, Any], console: Console) -> None:
    """Print what `runs.against` returns."""
    table = Table(title=f"Run {result['run']} against {result['against']}", **_LOOK)
    for name in ("method", "hypervolume", "against", "difference", "P(ahead)"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for row in result["methods"]:
        table.add_row(
            row["method"], f"{row['hypervolume']:.2f}", f"{row['hypervolume_against']:.2f}",
            _with_interval(row["difference"], row["interval"]), f"{row['probability']:.0%}",
        )  # fmt: skip
    console.print(table)
    console.print(Text(CAVEAT, style="dim"))


def seeds_as_json(result: Mapping[str, Any]) -> dict[str, Any]:
    """Turn what `runs.over_seeds` returns into JSON-able values."""
    return {
        "seeds": result["seeds"],
        "methods": [
            {"method": name, **_estimate(value), "each": result["each"][name]}
            for name, value in result["methods"].items()
        ],
        "differences": [{"methods": list(pair), **_estimate(value)} for pair, value in result["differences"].items()],
        "attainment": [
            {"method": name, "share": share, "points": surface.tolist()}
            for name, surfaces in result["attainment"].items()
            for share, surface in surfaces.items()
        ],
    }


def _estimate(value: Any) -> dict[str, Any]:
    return {"value": value.value, "interval": [value.low, value.high], "probability": value.probability}


def print_seeds(result: Mapping[str, Any], console: Console) -> None:
    """Print what `seeds_as_json` returns."""
    seeds = ", ".join(map(str, result["seeds"]))
    table = Table(title=f"Hypervolume over training seeds {seeds}", **_LOOK)
    there = [row["method"] for row in result["methods"]]
    baselines = [name for name in BASELINES if name in there]
    for name in ("method", "hypervolume", "each seed", *(f"ahead of {name} by" for name in baselines)):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name == "method")
    for row in result["methods"]:
        cells = [_seed_difference(result, row["method"], baseline) for baseline in baselines]
        each = " ".join(f"{value:.2f}" for value in row["each"])
        table.add_row(row["method"], _with_interval(row["value"], row["interval"]), each, *cells)
    console.print(table)
    one = len(result["seeds"]) == 1
    about = "one seed: the spread between trainings is not in them" if one else "prompts and training seeds together"
    console.print(
        Text(f"95 % intervals over {about}; the probability that the sign is right in brackets.", style="dim")
    )


def _seed_difference(result: Mapping[str, Any], method: str, baseline: str) -> str:
    for row in result["differences"]:
        if row["methods"] == [method, baseline]:
            return f"{_with_interval(row['value'], row['interval'])} ({row['probability']:.0%})"
        if row["methods"] == [baseline, method]:
            low, high = row["interval"]
            return f"{_with_interval(-row['value'], [-high, -low])} ({1 - row['probability']:.0%})"
    return "–"


def _methods_table(comparison: Mapping[str, Any], title: str, *, measures: bool, costs: bool) -> Table:
    """A row per method, with the columns that are asked for."""
    objectives = comparison["objectives"]
    table = Table(title=title, **_LOOK)
    names = [*(("hypervolume", *(f"tau {name}" for name in objectives)) if measures else ())]
    names += [*(("rollouts", "train", "passes", "parameters", "models") if costs else ())]
    table.add_column("method", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=not name.startswith("tau"))
    for method in comparison["methods"]:
        cost, taus = method["cost"], method["steerability"]
        measured = [
            _with_interval(method["hypervolume"], method["hypervolume_interval"]),
            *(f"{taus[name]:.2f}" if name in taus else "–" for name in objectives),
        ]
        spent = [
            _count(cost["rollouts"]), _seconds(cost["train_seconds"]), _count(cost["forward_passes_per_token"]),
            _count(cost["stored_parameters"]), _count(cost["models"]),
        ]  # fmt: skip
        table.add_row(method["method"], *(measured if measures else ()), *(spent if costs else ()))
    return table


def _against_table(comparison: Mapping[str, Any], baseline: str, *, wide: bool) -> Table:
    """What every method does to one baseline's frontier, and how sure that is."""
    table = Table(title=f"Against {baseline}: points dominated, and hypervolume ahead by", **_LOOK)
    for name in ("method", "dominates", "is dominated", *(["P(more)"] if wide else []), "ahead by", "P", "win rate"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    others = {method["method"]: method for method in comparison["methods"]}
    for name, method in others.items():
        if name == baseline:
            continue
        wins = method["against"]["win_rate"].get(baseline)
        share, volume = (_ahead(comparison, name, baseline, what) for what in ("dominated_share", "hypervolume"))
        table.add_row(
            name,
            _share(method["dominated_share"][baseline]),
            _share(others[baseline]["dominated_share"][name]),
            *([f"{share[2]:.0%}"] if wide else []),
            _with_interval(volume[0], volume[1]),
            f"{volume[2]:.0%}",
            "–" if wins is None else _share(wins),
        )
    return table


def _ahead(comparison: Mapping[str, Any], a: str, b: str, statistic: str) -> tuple[float, list[float], float]:
    """How far A is ahead of B in one statistic: difference, interval, probability."""
    for pair in comparison["comparisons"]:
        if pair["statistic"] == statistic and set(pair["methods"]) == {a, b}:
            low, high = pair["interval"]
            if pair["methods"] == [a, b]:
                return pair["difference"], [low, high], pair["probability"]
            return -pair["difference"], [-high, -low], 1 - pair["probability"]
    raise KeyError(f"no comparison of {a} and {b} by {statistic}")


def _print_differences(comparison: Mapping[str, Any], console: Console) -> None:
    pairs = [pair for pair in comparison["comparisons"] if pair["statistic"] == "hypervolume"]
    shown = [pair for pair in pairs if REFERENCE not in pair["methods"] or len(pairs) == 1]
    if len(comparison["methods"]) <= FEW:
        console.print(Text("\nHypervolume, paired over prompts", style="bold"))
        for pair in shown:
            console.print(Text(f"  {difference_sentence(pair)}"))
    if len(shown) > 1:
        console.print(
            f"{len(shown)} pairs of methods are compared and each interval is for its pair alone: about "
            f"{max(1, round(len(shown) / 20))} of so many would exclude 0 by chance.",
            style="dim",
        )


def _budget(methods: Sequence[Mapping[str, Any]]) -> str:
    """Say at what budget the methods were trained, and which had another."""
    rollouts = {method["method"]: method["cost"]["rollouts"] for method in methods if method["cost"]["rollouts"]}
    if not rollouts:
        return ""
    usual = max(set(rollouts.values()), key=list(rollouts.values()).count)
    others = [f"{name} {_count(value)}" for name, value in rollouts.items() if value != usual]
    return f"Budget: {_count(usual)} rollouts each{' but ' + ', '.join(others) if others else ''}."


def print_points(comparison: Mapping[str, Any], title: str, console: Console) -> None:
    """Print every point of every method; where one table does not fit the terminal, several, so that nothing is cut off.

    Needs `objectives` and `methods` of a comparison only.
    """
    methods = comparison["methods"]
    labels = [weighting_label(point["weighting"]) for method in methods for point in method["points"]]
    room = console.width - sum(
        max(map(len, column)) + 1 for column in ([m["method"] for m in methods] + ["method"], labels)
    )
    rewards = {name: max(len(name), INTERVAL) + 1 for name in comparison["objectives"]}
    monitors = {name: max(len(label), NUMBER) + 1 for name, label in MONITOR_NAMES.items()}
    together = rewards | monitors
    if console.width >= WIDE and sum(together.values()) <= room:
        tables = [(title, [*together])]
    else:
        tables = [(title, group) for group in _groups(rewards, room)]
        tables += [("Monitored, never optimized", group) for group in _groups(monitors, room)]
    for heading, names in tables:
        table = _points_table(comparison, heading, dict.fromkeys(names))
        if console.measure(table, options=console.options.update(width=10 * WIDE)).maximum > console.width:
            table = _points_table(comparison, heading, {name: together[name] - 1 for name in names})
        console.print(table)


def _groups(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Put columns side by side as long as there is room; at least one in each group."""
    groups: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not groups or width > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= width
    return groups


def _points_table(comparison: Mapping[str, Any], title: str, columns: Mapping[str, int | None]) -> Table:
    """A row per point, with these objectives and monitors; of a given width, a value's interval goes below it."""
    table = Table(title=title, **_LOOK)
    table.add_column("method", no_wrap=True)
    table.add_column("w", justify="right", no_wrap=True)
    for name, width in columns.items():
        table.add_column(MONITOR_NAMES.get(name, name), justify="right", width=width)
    for method in comparison["methods"]:
        for i, point in enumerate(method["points"]):
            cells = [
                _decimals(point["monitors"][name], 1 if name == "length" else 2)
                if name in MONITORS
                else _with_interval(point["rewards"][name], point["intervals"][name])
                for name in columns
            ]
            table.add_row("" if i else method["method"], weighting_label(point["weighting"]), *cells)
        table.add_section()
    return table


def _share(value: Mapping[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['value']:.0%} [{low * 100:.0f},{high * 100:.0f}]"


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return f"{value:.2f}"
    return f"{value:.2f} [{interval[0]:.2f},{interval[1]:.2f}]".replace("-0.00", "0.00")


def _decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value / 60:.1f} min" if value >= 90 else f"{value:.0f} s"
