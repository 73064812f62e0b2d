"""The comparison of a run's methods as tables for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.report.cells import LOOK, count, decimals, measured, seconds, share, with_interval
from clp_lightning.report.labels import BASELINES, CAVEAT, difference_sentence, strength
from clp_lightning.report.points import WIDE, print_by_weighting, print_points
from clp_lightning.store.queries import REFERENCE

FEW = 4  # methods whose points are all shown without being asked for


def print_table(comparison: Mapping[str, Any], console: Console, *, points: bool = False) -> None:
    """Print what training maximizes first, then frontiers, costs, and what is needed to reproduce the axes.

    A few methods show J at every weighting and every point unasked, more with `points`.
    """
    objectives, methods = comparison["objectives"], comparison["methods"]
    few = points or len(methods) <= FEW
    console.print(_objective_table(comparison))
    at = f", {known}" if (known := strength(comparison)) else ""
    console.print(
        f"J = (1 - alpha) w.R - alpha KL is what training maximizes{at}; here its mean over the weightings. Regret: what "
        "the best method at each weighting has more. KL to the reference policy in nats per answer.",
        style="dim",
    )
    _print_differences(comparison, console)
    if few:
        print_by_weighting(comparison, console)
    for baseline in BASELINES:
        if len(methods) > FEW and any(method["method"] == baseline for method in methods):
            console.print(_against_table(comparison, baseline, wide=console.width >= WIDE))
    for table in _frontier_tables(comparison):
        console.print(table)
    if any("cvar" in method["metrics"] for method in methods):  # not in a store of before
        console.print(_reliability_table(methods))
    console.print(_costs_table(methods))
    console.print(
        "tau: does more weight buy more reward? 1 always, 0 never (Kendall). passes: of the model, per token.",
        style="dim",
    )
    if few:
        print_points(comparison, "Mean rewards [95 % interval]", console)
        console.print(f"w = {' : '.join(objectives)}. Rewards are standardized, higher is better.", style="dim")
    for name, reason in comparison["left_out"].items():
        console.print(Text(f"\nLeft out: {name}. {reason}", style="bold"))
    console.print(Text(_provenance(comparison), style="dim"))


def _provenance(comparison: Mapping[str, Any]) -> str:
    point = ", ".join(f"{name} {value:g}" for name, value in comparison["reference_point"].items())
    scales = ", ".join(f"{n} ({s['mean']:.4g}, {s['std']:.4g})" for n, s in comparison["normalization"].items())
    groups = "" if comparison["groups"] is None else f" of {comparison['groups']} groups"
    on = "" if comparison["computed_on"] is None else f"Evaluated on {comparison['computed_on']['evaluation']}. "
    return (
        f"\nHypervolume above the reference point {point}. Normalization (mean, std): {scales}.\n"
        f"Seed {comparison['seed']}, training seed {count(comparison['training_seed'])}, corpus "
        f"{comparison['corpus_hash']}, {comparison['prompts']} prompts{groups}, {comparison['bootstrap_draws']} resamples. "
        f"{on}{_budget(comparison['methods'])} {CAVEAT}"
    )


def _objective_table(comparison: Mapping[str, Any]) -> Table:
    """Mean J, regret and KL, a row per method."""
    table = Table(title=f"Run {comparison['run']}", **LOOK)
    for name in ("method", "mean J", "regret", "KL"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in comparison["methods"]:
        own = method["metrics"].get("mean_j")
        regret, kl = decimals(method["mean_regret"], 3), decimals(method["mean_kl"], 2)
        table.add_row(method["method"], measured(own, 3), regret, kl)
    return table


def _frontier_tables(comparison: Mapping[str, Any]) -> Iterator[Table]:
    """Hypervolumes of rewards with tau, and of regularized rewards, above the reference point and the reference policy."""
    objectives, methods = comparison["objectives"], comparison["methods"]
    point = f"above ({', '.join(f'{value:g}' for value in comparison['reference_point'].values())})"
    for kind, title in (("", "Hypervolume of rewards"), ("regularized_", "Hypervolume of (1 - alpha) R - alpha KL")):
        names = [f"{kind}hypervolume", f"{kind}hypervolume_above_reference"]
        if not any(names[-1] in method["metrics"] for method in methods):
            continue
        table = Table(title=title, **LOOK)
        table.add_column("method", no_wrap=True)
        for name in (point, "above reference", *(() if kind else (f"tau {name}" for name in objectives))):
            table.add_column(name, justify="right", no_wrap=not name.startswith("tau"), overflow="fold")
        for method in methods:
            taus = method["steerability"]
            cells = [measured(method["metrics"].get(name)) for name in names]
            cells += [] if kind else [f"{taus[name]:.2f}" if name in taus else "–" for name in objectives]
            table.add_row(method["method"], *cells)
        yield table


def _reliability_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    """The worst prompts and the worst objective, where a policy lands, and how much that varies over prompts."""
    table = Table(title="Reliability", **LOOK)
    columns = {"worst quarter": "cvar", "highest floor": "worst_objective", "off the request": "tradeoff_distance",
               "spread": "reward_covariance"}  # fmt: skip
    for name in ("method", *columns):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in methods:
        worst, *others = (method["metrics"].get(name) for name in columns.values())
        plain = (decimals(None if found is None else found["value"], 2) for found in others)  # --json has the intervals
        table.add_row(method["method"], measured(worst), *plain)
    table.caption = (
        "w.R of the worst quarter of prompts; 0: the trade-off asked for; determinant of the rewards' covariance."
    )
    return table


def _costs_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Costs", **LOOK)
    for name in ("method", "rollouts", "train", "passes", "parameters", "models"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for method in methods:
        cost = method["cost"]
        table.add_row(
            method["method"], count(cost["rollouts"]), seconds(cost["train_seconds"]),
            count(cost["forward_passes_per_token"]), count(cost["stored_parameters"]), count(cost["models"]),
        )  # fmt: skip
    return table


def _against_table(comparison: Mapping[str, Any], baseline: str, *, wide: bool) -> Table:
    """How far every method is ahead of a baseline in J, the KL of both, and what it does to the baseline's frontier."""
    table = Table(title=f"Against {baseline}: mean J ahead by, KL, and points dominated", **LOOK)
    columns = ["method", "J ahead by", "P", "KL", "dominates", *(["regularized"] if wide else []), "win rate"]
    for name in (*columns, *(["hypervolume ahead by"] if wide else [])):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    others = {method["method"]: method for method in comparison["methods"]}
    for name, method in others.items():
        if name == baseline:
            continue
        j, volume = (_ahead(comparison, name, baseline, what) for what in ("mean_j", "hypervolume"))
        kl = [decimals(each["mean_kl"], 1) for each in (method, others[baseline])]
        wins, vectors = method["against"]["win_rate"].get(baseline), method["regularized_dominated_share"].get(baseline)
        table.add_row(
            name,
            "–" if j is None else with_interval(j[0], j[1]),
            "–" if j is None else f"{j[2]:.0%}",
            "/".join(kl),
            share(method["dominated_share"][baseline]),
            *(["–" if vectors is None else share(vectors)] if wide else []),
            "–" if wins is None else share(wins),
            *(["–" if volume is None else with_interval(volume[0], volume[1])] if wide else []),
        )
    return table


def _ahead(comparison: Mapping[str, Any], a: str, b: str, statistic: str) -> tuple[float, list[float], float] | None:
    """How far A is ahead of B in one statistic: difference, interval, probability; None where that is not known."""
    for pair in comparison["comparisons"]:
        if pair["statistic"] == statistic and set(pair["methods"]) == {a, b}:
            low, high = pair["interval"]
            if pair["methods"] == [a, b]:
                return pair["difference"], [low, high], pair["probability"]
            return -pair["difference"], [-high, -low], 1 - pair["probability"]
    return None


def _print_differences(comparison: Mapping[str, Any], console: Console) -> None:
    """Print every paired difference of a few methods, in mean J first, and how many there are."""
    for statistic, title in (("mean_j", "Mean J"), ("hypervolume", "Hypervolume of rewards")):
        pairs = [pair for pair in comparison["comparisons"] if pair["statistic"] == statistic]
        shown = [pair for pair in pairs if REFERENCE not in pair["methods"] or len(pairs) == 1]
        if len(comparison["methods"]) <= FEW and shown:
            console.print(Text(f"\n{title}, paired over prompts", style="bold"))
            for pair in shown:
                console.print(Text(f"  {difference_sentence(pair)}"))
    volumes = [pair for pair in comparison["comparisons"] if pair["statistic"] == "hypervolume"]
    shown = [pair for pair in volumes if REFERENCE not in pair["methods"]]
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
    others = [f"{name} {count(value)}" for name, value in rollouts.items() if value != usual]
    return f"Budget: {count(usual)} rollouts each{' but ' + ', '.join(others) if others else ''}."
