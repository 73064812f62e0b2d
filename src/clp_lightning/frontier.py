"""Frontiers of mean rewards: non-dominated sets, hypervolume, dominance, steerability, paired bootstrap.

Pure functions of numpy arrays. All objectives are maximized. N points, P prompts, K objectives.
"""

from collections.abc import Callable, Mapping

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
    points = _points(points)
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(points: ArrayLike, reference_point: ArrayLike) -> float:
    """Volume between the reference point and the points, the larger the better (Zitzler & Thiele 1999).

    `points` [N, K], `reference_point` [K]. Points that are not above the reference point in every objective contribute
    nothing; no points have volume 0. Raises `ClpError` on NaN or when the two disagree about K.
    """
    points, reference = _points(points), np.atleast_1d(_finite(reference_point, "the reference point"))
    if reference.shape != (points.shape[1],):
        raise ClpError(f"points have {points.shape[1]} objectives, the reference point has {reference.size}")
    if len(points) == 0:
        return 0.0
    return float(moocore.hypervolume(points, ref=reference, maximise=True))


def dominated_share(a: ArrayLike, b: ArrayLike) -> float:
    """Share of B's points that at least one of A's points dominates, 0..1 (the C-metric without ties).

    `a` [N, K], `b` [M, K]; no points in B give 0. Raises `ClpError` on NaN.
    """
    a, b = _points(a), _points(b)
    if len(b) == 0:
        return 0.0
    above = a[:, None, :] - b[None, :, :]  # [N, M, K]
    return float(((above >= 0).all(-1) & (above > 0).any(-1)).any(0).mean())


def steerability(weightings: ArrayLike, rewards: ArrayLike) -> float:
    """Kendall's tau-b between an objective's weight and the mean reward it buys: 1 obeys, 0 ignores, -1 inverts.

    `weightings` [N], `rewards` [N]. A policy whose reward never changes has tau 0 here (it ignores its weighting),
    where the textbook leaves it undefined. Raises `ClpError` on NaN. Same values as scipy.stats.kendalltau, which
    takes ten times as long for the few points of a frontier (Kendall 1945).
    """
    x, y = _finite(weightings, "weightings"), _finite(rewards, "rewards")
    if x.shape != y.shape or x.ndim != 1:
        raise ClpError(f"weightings and rewards must be two lists of one length, not {x.shape} and {y.shape}")
    upper = np.triu_indices(len(x), 1)
    x, y = (np.sign(np.subtract.outer(v, v))[upper] for v in (x, y))
    untied = float(np.abs(x).sum() * np.abs(y).sum())
    return float(x @ y / np.sqrt(untied)) if untied else 0.0


def resampled_means(per_prompt: Mapping[str, Array], draws: int, seed: int) -> dict[str, Array]:
    """Mean rewards over `draws` resamples of the prompts, the same resamples for every method.

    `per_prompt` maps a method to [N, P, K] (N may differ, P may not) -> method to [draws, N, K]. Prompts are drawn with
    replacement as multinomial counts, so that a resampled mean is one matrix product. Raises `ClpError` on NaN.
    """
    prompts = {values.shape[1] for values in per_prompt.values()}
    if len(prompts) != 1 or 0 in prompts:
        raise ClpError(f"a paired bootstrap needs the same prompts for every method, found {sorted(prompts)} of them")
    (p,) = prompts
    counts = np.random.default_rng(seed).multinomial(p, np.full(p, 1 / p), size=draws).astype(float)  # [draws, P]
    means = {}
    for method, values in per_prompt.items():
        n, _, k = values.shape
        by_prompt = _finite(values, f"rewards of {method}").transpose(1, 0, 2).reshape(p, n * k)
        means[method] = (counts @ by_prompt / p).reshape(draws, n, k)
    return means


def bootstrap(
    per_prompt: Mapping[str, Array], statistic: Callable[[Array], float], draws: int, seed: int
) -> dict[str, Array]:
    """Draws [draws] of a statistic of mean rewards [N, K] for each method, paired: subtract them draw by draw.

    See `resampled_means` for `per_prompt`. Efron & Tibshirani 1993, chapter 6.
    """
    means = resampled_means(per_prompt, draws, seed)
    return {method: np.array([statistic(points) for points in values]) for method, values in means.items()}


def interval(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval (low, high) that holds `level` of the draws. Raises `ClpError` on NaN."""
    tail = (1 - level) / 2
    low, high = np.quantile(_finite(draws, "draws"), [tail, 1 - tail])
    return float(low), float(high)


def _points(values: ArrayLike) -> Array:
    points = _finite(values, "points")
    if points.ndim != 2:
        raise ClpError(f"points must have the shape [N, K], not {list(points.shape)}")
    return points


def _finite(values: ArrayLike, what: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ClpError(f"{what} must be finite numbers, found {int((~np.isfinite(array)).sum())} that are not")
    return array
