"""Frontiers of mean rewards: non-dominated sets, hypervolume, dominance, steerability.

Pure functions of numpy arrays. All objectives are maximized. N points, P prompts, K objectives. Where points are [..., N, K], the
statistic is of every set along the leading axes at once: a bootstrap has thousands.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clp_lightning.errors import ClpError

Array = NDArray[np.float64]


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    `points` [N, K] -> [N]. A point dominates another if it is nowhere worse and somewhere better, so equal points do
    not dominate each other. Raises `ClpError` on NaN.
    """
    points = _set(points)
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(points: ArrayLike, reference_point: ArrayLike) -> float:
    """Volume between the reference point and the points, the larger the better (Zitzler & Thiele 1999).

    `points` [N, K], `reference_point` [K]. Points that are not above the reference point in every objective contribute
    nothing; no points have volume 0. Raises `ClpError` on NaN or when the two disagree about K.
    """
    points, reference = _set(points), np.atleast_1d(finite(reference_point, "the reference point"))
    if reference.shape != (points.shape[1],):
        raise ClpError(f"points have {points.shape[1]} objectives, the reference point has {reference.size}")
    if len(points) == 0:
        return 0.0
    return float(moocore.hypervolume(points, ref=reference, maximise=True))


def dominated_share(a: ArrayLike, b: ArrayLike) -> Array:
    """Share of B's points that at least one of A's points dominates, 0..1 (the C-metric without ties) -> [...].

    `a` [..., N, K], `b` [..., M, K]; no points in B give 0. Raises `ClpError` on NaN.
    """
    a, b = _points(a), _points(b)
    if not b.shape[-2]:
        return np.zeros(b.shape[:-2])
    nowhere_worse: NDArray[np.bool_] = functools.reduce(np.logical_and, (x >= y for x, y in _columns(a, b)))
    somewhere_better: NDArray[np.bool_] = functools.reduce(np.logical_or, (x > y for x, y in _columns(a, b)))
    return np.asarray((nowhere_worse & somewhere_better).any(-2).mean(-1))


def epsilon_indicator(a: ArrayLike, b: ArrayLike) -> Array:
    """Least shift of every objective after which A weakly dominates all of B; below 0 if it does so with room to spare -> [...].

    `a` [..., N, K], `b` [..., M, K], both with points; additive epsilon (Zitzler et al. 2003). moocore has it for one pair of
    sets, and is the check. Raises `ClpError` on NaN.
    """
    shift: Array = functools.reduce(np.maximum, (y - x for x, y in _columns(_some(a), _some(b))))  # [..., N, M]
    return np.asarray(shift.min(-2).max(-1))


def igd_plus(points: ArrayLike, target: ArrayLike) -> float:
    """Mean distance by which `points` [N, K] fall short of the target frontier [M, K]; 0 if they reach all of it.

    IGD+ (Ishibuchi et al. 2015), from moocore: being better than the target costs nothing. Raises `ClpError` on NaN.
    """
    return float(moocore.igd_plus(_some(points), _some(target), maximise=True))


def union_frontier(sets: Iterable[ArrayLike]) -> Array:
    """Return the non-dominated points [M, K] of several sets [N, K] together."""
    together = np.concatenate([_set(points) for points in sets])
    return together[nondominated(together)]


def attainment(sets: Sequence[ArrayLike], share: float) -> Array:
    """Return the surface [M, K] that at least `share` (0..1) of several runs' points [N, K] attain: 0.5 is the median.

    Empirical attainment (Grunert da Fonseca et al. 2001), from moocore, for 2 or 3 objectives. Raises `ClpError` on NaN.
    """
    each = [_some(points) for points in sets]
    if not each or each[0].shape[1] not in (2, 3):
        raise ClpError("attainment surfaces need at least one run, and 2 or 3 objectives")
    run = np.repeat(np.arange(len(each)), [len(points) for points in each])
    surface = moocore.eaf(-np.concatenate(each), run, percentiles=[100 * share])  # moocore minimizes here
    return -np.asarray(surface[:, :-1], dtype=np.float64)


def expected_utility(weightings: ArrayLike, points: ArrayLike) -> Array:
    """EUM: mean over weightings [W, K] of the best `w.R` among points [..., N, K], as if a user chose the best for each w.

    Zintgraf et al. 2015. Never below `mean_inner_product` of the same points. Raises `ClpError` on NaN.
    """
    return np.asarray((_some(points)[..., None, :, :] * _some(weightings)[:, None]).sum(-1).max(-1).mean(-1))


def mean_inner_product(weightings: ArrayLike, points: ArrayLike) -> Array:
    """Mean of `w.R(w)` over weightings [N, K] and the points [..., N, K] that the policy reaches when given them."""
    w, points = _points(weightings), _points(points)
    if w.shape != points.shape[-2:] or not len(w):
        raise ClpError(f"each point needs its weighting: shapes {w.shape} and {points.shape}")
    return np.asarray((w * points).sum(-1).mean(-1))


def off_grid_regret(weightings: ArrayLike, points: ArrayLike, on_grid: ArrayLike) -> Array:
    """Mean over the weightings off the grid of what the best point on it has more in `w.R` than the policy's own point there.

    `weightings` [N, K], `points` [..., N, K], `on_grid` bool [N], some of each kind. At or below 0 the policy is steered
    between the grid's points as well as at them. Raises `ClpError` on NaN.
    """
    w, points, on = _points(weightings), _points(points), np.asarray(on_grid, dtype=bool)
    off = w[~on]
    return expected_utility(off, points[..., on, :]) - mean_inner_product(off, points[..., ~on, :])


def worst_objective(points: ArrayLike) -> Array:
    """Return the highest floor on offer: the best, over points [..., N, K], of a point's worst objective."""
    return np.asarray(_some(points).min(-1).max(-1))


def sparsity(points: ArrayLike) -> float:
    """Mean squared gap between neighbours on the frontier, objective by objective (Xu et al. 2020); one point: 0.

    `points` [N, K], dominated ones are left out. Its authors warn to read it beside the hypervolume only: points far below
    a good frontier can be dense. Raises `ClpError` on NaN.
    """
    front = _set(points)[nondominated(points)]
    if len(front) < 2:
        return 0.0
    return float((np.diff(np.sort(front, axis=0), axis=0) ** 2).sum() / (len(front) - 1))


def violations(weightings: ArrayLike, rewards: ArrayLike) -> int:
    """Number of steps from one weight [N] to the next higher one at which the mean reward [N] falls.

    Points of equal weight count as one, with their mean. Raises `ClpError` on NaN.
    """
    x, y = _pair(weightings, rewards)
    _, level = np.unique(np.round(x, 9), return_inverse=True)
    means = np.bincount(level, y) / np.bincount(level)
    return int((np.diff(means) < 0).sum())


def wins(weightings: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    """Return for each prompt the share of weightings at which A's `w.R` is above B's, ties count half; 0.5 is level.

    `weightings` [N, K], per-prompt rewards `a` and `b` [N, P, K] at the same weightings and prompts -> [P]; the mean is the win
    rate. Raises `ClpError` on NaN.
    """
    w = _points(weightings)
    a, b = finite(a, "rewards of A"), finite(b, "rewards of B")
    if a.shape != b.shape or a.shape[::2] != w.shape:
        raise ClpError(f"a win rate needs the same weightings and prompts, not {a.shape} and {b.shape} at {w.shape}")
    difference = ((a - b) * w[:, None]).sum(-1)
    return np.asarray((difference > 0).mean(0) + (difference == 0).mean(0) / 2)


def steerability(weightings: ArrayLike, rewards: ArrayLike) -> float:
    """Kendall's tau-b between an objective's weight and the mean reward it buys: 1 obeys, 0 ignores, -1 inverts.

    `weightings` [N], `rewards` [N]. A policy whose reward never changes has tau 0 here (it ignores its weighting),
    where the textbook leaves it undefined. Raises `ClpError` on NaN. Same values as scipy.stats.kendalltau, which
    takes ten times as long for the few points of a frontier (Kendall 1945).
    """
    x, y = _pair(weightings, rewards)
    upper = np.triu_indices(len(x), 1)
    x, y = (np.sign(np.subtract.outer(v, v))[upper] for v in (x, y))
    untied = float(np.abs(x).sum() * np.abs(y).sum())
    return float(x @ y / np.sqrt(untied)) if untied else 0.0


def _pair(weightings: ArrayLike, rewards: ArrayLike) -> tuple[Array, Array]:
    x, y = finite(weightings, "weightings"), finite(rewards, "rewards")
    if x.shape != y.shape or x.ndim != 1:
        raise ClpError(f"weightings and rewards must be two lists of one length, not {x.shape} and {y.shape}")
    return x, y


def _columns(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Yield each objective of A [..., N, 1] and B [..., 1, M]: to compare them one by one is faster than a last axis of 2."""
    for k in range(a.shape[-1]):
        yield a[..., k][..., :, None], b[..., k][..., None, :]


def _set(values: ArrayLike) -> Array:
    """One set [N, K] for functions that take one at a time."""
    points = _points(values)
    if points.ndim != 2:
        raise ClpError(f"points must have the shape [N, K], not {list(points.shape)}")
    return points


def _some(values: ArrayLike) -> Array:
    points = _points(values)
    if not points.shape[-2]:
        raise ClpError("no points to measure; a metric of a frontier needs at least one")
    return points


def _points(values: ArrayLike) -> Array:
    points = finite(values, "points")
    if points.ndim < 2:
        raise ClpError(f"points must have the shape [N, K], not {list(points.shape)}")
    return points


def finite(values: ArrayLike, what: str) -> Array:
    """Return `values` as float64; raises `ClpError` on NaN and infinities."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ClpError(f"{what} must be finite numbers, found {int((~np.isfinite(array)).sum())} that are not")
    return array
