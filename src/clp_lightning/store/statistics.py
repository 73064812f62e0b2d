"""The statistics of one run: points, metrics of every method and pair, and paired differences, with 95 % intervals."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.reliability import covariance_determinant, cvar, tradeoff_distance
from clp_lightning.store.objective import at_weightings, on_objective
from clp_lightning.store.resampling import Resampled, Setting, resample
from clp_lightning.store.results import Sampled
from clp_lightning.weightings import on_lattice

Rows = list[tuple[Any, ...]]
# Measures of which more is better: those that two methods are compared by.
LARGER_IS_BETTER = ("hypervolume", "expected_utility", "mean_inner_product", "worst_objective")


def statistics(found: Sequence[Sampled], setting: Setting) -> dict[str, pd.DataFrame]:
    """Every statistic of a run with 95 % intervals from one paired bootstrap over groups of prompts.

    Returns tidy frames for the tables of the same names: `points`, `metrics`, `comparisons`, and of what training maximizes
    `objective`, `by_weighting` and `regularized`; docs/metrics.md defines each metric. The intervals cover the choice of
    prompts, not the spread between training runs.
    """
    bootstrap, resampled, rates = resample(found, setting)
    frames = on_rewards(resampled, rates, setting, bootstrap)
    for name, frame in on_objective(resampled, setting, bootstrap).items():
        frames[name] = pd.concat([frames[name], frame], ignore_index=True) if name in frames else frame
    return frames


def on_rewards(
    resampled: Sequence[Resampled], rates: Mapping[tuple[str, str], Array], setting: Setting, bootstrap: Bootstrap
) -> dict[str, pd.DataFrame]:
    """Return the statistics of the rewards alone: `points`, `metrics` and `comparisons`."""
    means = {each.method: each.means for each in resampled}
    union = frontier.union_frontier(m[0] for m in means.values())
    measured = {each.method: _measure(each, setting, union) for each in resampled}
    metrics: Rows = []
    for method, values in measured.items():
        for name, versions in values.items():
            metrics.append((method, name, None, versions[0], *bootstrap.interval(versions)))
        metrics.append((method, "cardinality", None, frontier.nondominated(means[method][0]).sum(), None, None))
    for each in resampled:
        metrics += _steering(each, setting.objectives, bootstrap)
    metrics += _reliability(resampled, bootstrap)
    pairs = {(a, b): frontier.dominated_share(means[a], means[b]) for a, b in itertools.permutations(means, 2)}
    for (a, b), shares in pairs.items():
        metrics.append((a, "dominated_share", b, shares[0], *bootstrap.percentiles(shares)))
        metrics.append((a, "dominates_all", b, float((shares[1:] == 1).mean()), None, None))
        epsilon = frontier.epsilon_indicator(means[a], means[b])
        metrics.append((a, "epsilon", b, epsilon[0], *bootstrap.interval(epsilon)))
    for (a, b), rate in rates.items():
        metrics.append((a, "win_rate", b, rate[0], *bootstrap.percentiles(rate)))
    return {
        "points": pd.concat([_points(each, bootstrap) for each in resampled], ignore_index=True),
        "metrics": pd.DataFrame(metrics, columns=["method", "metric", "target", "value", "low", "high"]),
        "comparisons": _comparisons(measured, pairs, bootstrap),
    }


def _measure(found: Resampled, setting: Setting, union: Array) -> dict[str, Array]:
    """Metrics of one method on all versions of the prompts, [R] each."""
    means = found.means
    measured = {
        "hypervolume": np.array([frontier.hypervolume(points, setting.reference_point) for points in means]),
        "igd_plus": np.array([frontier.igd_plus(points, union) for points in means]),
        "worst_objective": frontier.worst_objective(means),
        "sparsity": np.array([frontier.sparsity(points) for points in means]),
    }
    if (weightings := found.weightings) is not None:
        measured["expected_utility"] = frontier.expected_utility(weightings, means)
        measured["mean_inner_product"] = frontier.mean_inner_product(weightings, means)
        on = on_lattice(weightings, setting.per_edge)
        if on.any() and not on.all() and means.shape[-1] > 1:  # one reward's weights are KL strengths, on no lattice
            measured["off_grid_regret"] = frontier.off_grid_regret(weightings, means, on)
    return measured


def _steering(found: Resampled, objectives: Sequence[str], bootstrap: Bootstrap) -> Rows:
    """Does the weighting do what it says? Per objective: tau, range and violations.

    Tau and violations have no interval: resamples of a perfect order are nearly all less than perfect, so that theirs would
    not hold the value.
    """
    if (weightings := found.weightings) is None or len(weightings) < 2:
        return []
    rows: Rows = []
    for k, objective in enumerate(objectives):
        tau = frontier.steerability(weightings[:, k], found.means[0, :, k])
        reach = np.ptp(found.means[..., k], axis=1)
        steps = frontier.violations(weightings[:, k], found.means[0, :, k])
        rows.append((found.method, "steerability", objective, tau, None, None))
        rows.append((found.method, "range", objective, reach[0], *bootstrap.interval(reach)))
        rows.append((found.method, "violations", objective, float(steps), None, None))
    return rows


def _reliability(resampled: Sequence[Resampled], bootstrap: Bootstrap) -> Rows:
    """Return `cvar`, `reward_covariance` and `tradeoff_distance` of every method, as far as each has a meaning.

    A policy that takes no weighting is measured at all that any method was given; where no method takes one there is neither
    CVaR nor trade-off, and with one objective no trade-off.
    """
    placed = at_weightings(resampled)
    values = {(each.method, "reward_covariance"): covariance_determinant(each.sampled.rewards) for each in resampled}
    for method, found in placed.items():
        utilities = (found.sampled.rewards * found.weightings[:, None]).sum(-1)  # type: ignore[index]
        values[method, "cvar"] = cvar(utilities)
    versions = bootstrap.averages(np.stack(list(values.values())))
    rows: Rows = [
        (method, name, None, each[0], *bootstrap.interval(each))
        for (method, name), each in zip(values, versions, strict=True)
    ]
    everywhere = np.concatenate([each.means for each in resampled], axis=1)  # [R, all points, K]
    if everywhere.shape[-1] > 1:
        low, high = everywhere.min(1), everywhere.max(1)
        for method, found in placed.items():
            distance = tradeoff_distance(found.weightings, found.means, low, high)  # type: ignore[arg-type]
            rows.append((method, "tradeoff_distance", None, distance[0], *bootstrap.interval(distance)))
    return rows


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


def _points(found: Resampled, bootstrap: Bootstrap) -> pd.DataFrame:
    ends = np.apply_along_axis(lambda values: np.array(bootstrap.interval(values)), 0, found.means)  # [2, N, K]
    low, high = ends.tolist()
    columns = {"method": found.method, "weighting_id": range(len(low)), "rewards": found.means[0].tolist()}
    return pd.DataFrame(columns | {"low": low, "high": high})
