"""The statistics of what training maximizes: J at every weighting, who is ahead where, and frontiers that KL cannot buy."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.objective import objective, regret, regularized, split_weightings
from clp_lightning.store.resampling import Resampled, Setting, matching

Rows = list[tuple[Any, ...]]
# What methods are compared by within a run, over training seeds and in a promotion.
MEASURES = (
    "mean_j", "mean_kl", "worst_objective", "hypervolume", "hypervolume_above_reference", "regularized_hypervolume",
    "regularized_hypervolume_above_reference",
)  # fmt: skip
PAIRED = ["difference", "low", "high", "probability"]
POINT = [
    "method",
    "weighting_id",
    "weighting",
    "alpha",
    "kl",
    "j",
    "j_low",
    "j_high",
    "regret",
    "regret_low",
    "regret_high",
]


def on_objective(resampled: Sequence[Resampled], setting: Setting, bootstrap: Bootstrap) -> dict[str, pd.DataFrame]:
    """Return `objective`, `by_weighting`, `regularized`, and rows of `metrics` and `comparisons`."""
    placed = at_weightings(resampled)
    values = {method: values_of_j(each, setting.alpha) for method, each in placed.items()}
    lost = _regrets(placed, values)
    flat = {} if any(swept(each, setting.alpha) for each in resampled) else {
        each.method: vectors(each, setting.alpha) for each in resampled
    }  # fmt: skip
    names = [name for name in MEASURES if (flat or not name.startswith("regularized_")) and (placed or "hyper" in name)]
    names = [name for name in names if name not in ("hypervolume", "worst_objective")]  # those of the rewards alone
    measured = {
        each.method: {
            name: measure(name, placed.get(each.method, each), resampled[0], setting.alpha, setting.reference_point)
            for name in names
        }
        for each in resampled
    }
    metrics: Rows = [
        (method, name, None, v[0], *bootstrap.interval(v))
        for method, own in measured.items()
        for name, v in own.items()
    ]
    metrics += [
        (m, "mean_regret", None, v[0], *bootstrap.percentiles(v)) for m, each in lost.items() for v in [each.mean(-1)]
    ]
    shares = {(a, b): frontier.dominated_share(flat[a], flat[b]) for a, b in itertools.permutations(flat, 2)}
    for (a, b), share in shares.items():
        metrics.append((a, "regularized_dominated_share", b, share[0], *bootstrap.percentiles(share)))
        metrics.append((a, "regularized_dominates_all", b, float((share[1:] == 1).mean()), None, None))
    points = [row for m in placed for row in _points(placed[m], values[m], lost[m], setting.alpha, bootstrap)]
    return {
        "objective": pd.DataFrame(points, columns=POINT),
        "by_weighting": _by_weighting(placed, values, bootstrap),
        "regularized": _regularized_points(flat, bootstrap),
        "metrics": pd.DataFrame(metrics, columns=["method", "metric", "target", "value", "low", "high"]),
        "comparisons": _comparisons(placed, setting.alpha, measured, shares, bootstrap),
    }


def values_of_j(found: Resampled, alpha: float) -> Array:
    """Return J [R, N] of a method that takes weightings on every version: J is linear, so that of the means is the mean."""
    weights, alphas = split_weightings(found.weightings, alpha)  # type: ignore[arg-type]
    return objective(found.means, found.kl, weights, alphas)


def measure(name: str, found: Resampled, reference: Resampled, alpha: float, point: Sequence[float]) -> Array:
    """Return one of `MEASURES` [R] of a method that takes weightings, or of the reference policy once it is `placed`.

    `reference` moves with every version of the prompts too. Raises `ClpError` for a frontier of regularized vectors where
    weightings are KL strengths.
    """
    if name in ("mean_j", "mean_kl"):
        return (values_of_j(found, alpha) if name == "mean_j" else found.kl).mean(-1)
    if name == "worst_objective":
        return frontier.worst_objective(found.means)
    kind = vectors if name.startswith("regularized_") else rewards
    points, low = kind(found, alpha), kind(reference, alpha)[:, 0]
    starts = low if name.endswith("_above_reference") else np.broadcast_to(point, low.shape)
    return np.array([frontier.hypervolume(each, start) for each, start in zip(points, starts, strict=True)])


def rewards(found: Resampled, alpha: float) -> Array:
    """Return mean rewards [R, N, K], whatever the KL strength."""
    return found.means


def vectors(found: Resampled, alpha: float) -> Array:
    """Return the vectors (1 - alpha) R - alpha KL [R, N, K]; raises `ClpError` where weightings are KL strengths."""
    if swept(found, alpha):
        raise ClpError(
            "where weightings are KL strengths there is no frontier of (1 - alpha) R - alpha KL: alpha differs"
        )
    return regularized(found.means, found.kl, alpha)


def swept(found: Resampled, alpha: float) -> bool:
    """Whether a method's weightings are KL strengths."""
    return found.weightings is not None and bool((split_weightings(found.weightings, alpha)[1] != alpha).any())


def on_shared(a: Resampled, b: Resampled) -> tuple[Resampled, Resampled] | None:
    """Return two methods at the weightings that both were given, in one order; None if there is none."""
    if (matched := matching(a.weightings, b.weightings)) is None:
        return None
    weightings, i, j = matched
    one, other = (
        Resampled(each.sampled._replace(weightings=weightings), each.means[:, at], each.kl[:, at])
        for each, at in ((a, i), (b, j))
    )
    return one, other


def at_weightings(resampled: Sequence[Resampled]) -> dict[str, Resampled]:
    """Return every method at weightings: a policy that takes none answers alike at all that any method was given."""
    given = [each.weightings for each in resampled if each.weightings is not None]
    if not given:
        return {}
    grid: Array = np.unique(np.round(np.concatenate(given), 12), axis=0).astype(np.float64)
    everywhere = {
        each.method: Resampled(
            each.sampled._replace(weightings=grid), *(np.repeat(part, len(grid), axis=1) for part in each[1:])
        )
        for each in resampled
        if each.weightings is None
    }
    return {each.method: everywhere.get(each.method, each) for each in resampled}


def _regrets(placed: Mapping[str, Resampled], values: Mapping[str, Array]) -> dict[str, Array]:
    """What each method has less in J [R, N] than the best method at the same weighting; 0 where it is the best or alone."""
    lost = {method: np.zeros_like(j) for method, j in values.items()}
    at = {m: [tuple(row) for row in np.round(each.weightings, 9).tolist()] for m, each in placed.items()}  # type: ignore[arg-type]
    for weighting in dict.fromkeys(itertools.chain(*at.values())):
        there = {method: rows.index(weighting) for method, rows in at.items() if weighting in rows}
        together = regret(np.stack([values[method][:, i] for method, i in there.items()], axis=1)[..., None])[..., 0]
        for column, (method, i) in enumerate(there.items()):
            lost[method][:, i] = together[:, column]
    return lost


def _points(found: Resampled, j: Array, lost: Array, alpha: float, bootstrap: Bootstrap) -> Rows:
    """A row per weighting: KL, J and what the best method there has more."""
    assert found.weightings is not None
    alphas = split_weightings(found.weightings, alpha)[1]
    return [
        (found.method, i, weighting, alphas[i], found.kl[0, i], j[0, i], *bootstrap.interval(j[:, i]),
         lost[0, i], *bootstrap.percentiles(lost[:, i]))
        for i, weighting in enumerate(found.weightings.tolist())
    ]  # fmt: skip


def _by_weighting(placed: Mapping[str, Resampled], values: Mapping[str, Array], bootstrap: Bootstrap) -> pd.DataFrame:
    """Paired differences in J at each weighting that two methods were given: who is ahead where."""
    rows: Rows = []
    for a, b in itertools.combinations(placed, 2):
        weightings, at_a, at_b = matching(placed[a].weightings, placed[b].weightings) or ((), (), ())
        for weighting, i, j in zip(weightings, at_a, at_b, strict=True):
            ahead = values[a][:, i] - values[b][:, j]
            rows.append((a, b, weighting.tolist(), ahead[0], *bootstrap.interval(ahead), bootstrap.probability(ahead)))
    return pd.DataFrame(rows, columns=["method_a", "method_b", "weighting", *PAIRED])


def _comparisons(
    placed: Mapping[str, Resampled],
    alpha: float,
    measured: Mapping[str, Mapping[str, Array]],
    shares: Mapping[tuple[str, str], Array],
    bootstrap: Bootstrap,
) -> pd.DataFrame:
    """Paired differences of every pair; J and KL are averaged over the weightings that both were given."""
    rows: Rows = []
    for a, b in itertools.combinations(measured, 2):
        differences = {}
        if placed and (shared := on_shared(placed[a], placed[b])) is not None:
            one, other = shared
            differences["mean_j"] = (values_of_j(one, alpha) - values_of_j(other, alpha)).mean(-1)
            differences["mean_kl"] = (one.kl - other.kl).mean(-1)
        for name in [name for name in measured[a] if "hypervolume" in name and name in measured[b]]:
            differences[name] = measured[a][name] - measured[b][name]
        if (a, b) in shares:
            differences["regularized_dominated_share"] = shares[a, b] - shares[b, a]
        for name, ahead in differences.items():
            rows.append((a, b, name, ahead[0], *bootstrap.interval(ahead), bootstrap.probability(ahead)))
    return pd.DataFrame(rows, columns=["method_a", "method_b", "statistic", *PAIRED])


def _regularized_points(flat: Mapping[str, Array], bootstrap: Bootstrap) -> pd.DataFrame:
    rows: Rows = []
    for method, versions in flat.items():
        ends = np.apply_along_axis(lambda values: np.array(bootstrap.interval(values)), 0, versions)  # [2, N, K]
        rows += [(method, i, *each) for i, each in enumerate(zip(versions[0].tolist(), *ends.tolist(), strict=True))]
    return pd.DataFrame(rows, columns=["method", "weighting_id", "rewards", "low", "high"])
