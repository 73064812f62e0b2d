"""The statistics of one run: points, metrics of every method and pair, and paired differences, with 95 % intervals."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning.config.parameters import Evaluation
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.store.results import MethodResults
from clp_lightning.weightings import on_lattice

Rows = list[tuple[Any, ...]]
# Measures of which more is better: those that two methods are compared by.
LARGER_IS_BETTER = ("hypervolume", "expected_utility", "mean_inner_product", "worst_objective")


def statistics(
    found: Sequence[MethodResults], objectives: Sequence[str], settings: Evaluation, seed: int
) -> dict[str, pd.DataFrame]:
    """Points, metrics and comparisons of a run with 95 % intervals from one paired bootstrap over prompts.

    Returns tidy frames: `points` (lists in the order of the objectives), `metrics` (method, metric, target, value, low, high;
    docs/metrics.md defines each) and `comparisons` (method_a minus method_b; `probability` is that of a being ahead).
    The intervals cover the choice of prompts, not the spread between training runs.
    """
    bootstrap = Bootstrap(found[0].rewards.shape[1], settings.bootstrap_draws, seed)
    means, rates = _means(found, bootstrap)
    union = frontier.union_frontier(m[0] for m in means.values())
    measured = {f.method: _measure(f, means[f.method], settings, union) for f in found}
    metrics: Rows = []
    for method, values in measured.items():
        for name, versions in values.items():
            metrics.append((method, name, None, versions[0], *bootstrap.interval(versions)))
        metrics.append((method, "cardinality", None, frontier.nondominated(means[method][0]).sum(), None, None))
    for f in found:
        metrics += _steering(f, means[f.method], objectives, bootstrap)
    pairs = {(a, b): frontier.dominated_share(means[a], means[b]) for a, b in itertools.permutations(means, 2)}
    for (a, b), shares in pairs.items():
        metrics.append((a, "dominated_share", b, shares[0], *bootstrap.percentiles(shares)))
        metrics.append((a, "dominates_all", b, float((shares[1:] == 1).mean()), None, None))
        epsilon = frontier.epsilon_indicator(means[a], means[b])
        metrics.append((a, "epsilon", b, epsilon[0], *bootstrap.interval(epsilon)))
    for (a, b), rate in rates.items():
        metrics.append((a, "win_rate", b, rate[0], *bootstrap.percentiles(rate)))
    return {
        "points": pd.concat([_points(f, means[f.method], bootstrap) for f in found], ignore_index=True),
        "metrics": pd.DataFrame(metrics, columns=["method", "metric", "target", "value", "low", "high"]),
        "comparisons": _comparisons(measured, pairs, bootstrap),
    }


def _means(
    found: Sequence[MethodResults], bootstrap: Bootstrap
) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    """Mean rewards [R, N, K] of every method, and win rates [R] of every pair, from one pass over the resamples.

    The mean over prompts of each prompt's own rate is the rate, so that it can be averaged like a reward.
    """
    pairs = list(itertools.permutations(found, 2))
    wins = {(a.method, b.method): each for a, b in pairs if (each := _wins(a, b)) is not None}  # [P] each
    flat = [f.rewards.transpose(0, 2, 1).reshape(-1, f.rewards.shape[1]) for f in found]  # [N * K, P]
    together = bootstrap.means(np.concatenate([*flat, *(each[None] for each in wins.values())])[..., None])[..., 0]
    *parts, rates = np.split(together, np.cumsum([len(part) for part in flat]), axis=1)
    means = {f.method: part.reshape(len(part), *f.rewards.shape[::2]) for f, part in zip(found, parts, strict=True)}
    return means, dict(zip(wins, rates.T, strict=True))


def _measure(found: MethodResults, means: Array, settings: Evaluation, union: Array) -> dict[str, Array]:
    """Metrics of one method on all versions of the prompts, [R] each."""
    reference_point = [settings.reference_point] * means.shape[-1]
    measured = {
        "hypervolume": np.array([frontier.hypervolume(points, reference_point) for points in means]),
        "igd_plus": np.array([frontier.igd_plus(points, union) for points in means]),
        "worst_objective": frontier.worst_objective(means),
        "sparsity": np.array([frontier.sparsity(points) for points in means]),
    }
    if (weightings := found.weightings) is not None:
        measured["expected_utility"] = frontier.expected_utility(weightings, means)
        measured["mean_inner_product"] = frontier.mean_inner_product(weightings, means)
        on = on_lattice(weightings, settings.weightings)
        if on.any() and not on.all() and means.shape[-1] > 1:  # one reward's weights are KL strengths, on no lattice
            measured["off_grid_regret"] = frontier.off_grid_regret(weightings, means, on)
    return measured


def _steering(found: MethodResults, means: Array, objectives: Sequence[str], bootstrap: Bootstrap) -> Rows:
    """Does the weighting do what it says? Per objective: tau, range and violations.

    Tau and violations have no interval: resamples of a perfect order are nearly all less than perfect, so that theirs would
    not hold the value.
    """
    if (weightings := found.weightings) is None or len(weightings) < 2:
        return []
    rows: Rows = []
    for k, objective in enumerate(objectives):
        tau = frontier.steerability(weightings[:, k], means[0, :, k])
        reach = np.ptp(means[..., k], axis=1)
        steps = frontier.violations(weightings[:, k], means[0, :, k])
        rows.append((found.method, "steerability", objective, tau, None, None))
        rows.append((found.method, "range", objective, reach[0], *bootstrap.interval(reach)))
        rows.append((found.method, "violations", objective, float(steps), None, None))
    return rows


def _wins(a: MethodResults, b: MethodResults) -> Array | None:
    """Return each prompt's win rate [P]; None if no weighting was given to both. The reference answers every one alike."""
    at_a, at_b = a.weightings, b.weightings
    if at_a is None or at_b is None:
        weightings = at_a if at_a is not None else at_b
        if weightings is None:
            return None
        first, second = (np.broadcast_to(f.rewards, (len(weightings), *f.rewards.shape[1:])) for f in (a, b))
        return frontier.wins(weightings, first, second)
    i, j = np.nonzero(np.abs(at_a[:, None] - at_b).max(-1) < 1e-9)
    return frontier.wins(at_a[i], a.rewards[i], b.rewards[j]) if len(i) else None


def _comparisons(
    measured: dict[str, dict[str, Array]], pairs: dict[tuple[str, str], Array], bootstrap: Bootstrap
) -> pd.DataFrame:
    rows: Rows = []
    for a, b in itertools.combinations(measured, 2):
        differences = {
            name: measured[a][name] - measured[b][name]
            for name in LARGER_IS_BETTER
            if name in measured[a].keys() & measured[b].keys()
        }
        differences["dominated_share"] = pairs[a, b] - pairs[b, a]
        for name, ahead in differences.items():
            rows.append((a, b, name, ahead[0], *bootstrap.interval(ahead), bootstrap.probability(ahead)))
    columns = ["method_a", "method_b", "statistic", "difference", "low", "high", "probability"]
    return pd.DataFrame(rows, columns=columns)


def _points(found: MethodResults, means: Array, bootstrap: Bootstrap) -> pd.DataFrame:
    ends = np.apply_along_axis(lambda values: np.array(bootstrap.interval(values)), 0, means)  # [2, N, K]
    low, high = ends.tolist()
    return found.points.assign(method=found.method, rewards=means[0].tolist(), low=low, high=high)
