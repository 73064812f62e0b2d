"""Statistics over training seeds: a mean whose interval covers seeds, clusters and prompts together."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit  # Student's t

from clp_lightning.errors import ClpError
from clp_lightning.frontier.bootstrap import LEVEL, Bootstrap


class Estimate(NamedTuple):
    """A statistic over training seeds: its mean, its 95 % interval, and the probability that it is above 0."""

    value: float
    low: float
    high: float
    probability: float


def hierarchical(values: ArrayLike, bootstrap: Bootstrap) -> Estimate:
    """Mean of a statistic over training seeds with an interval for seeds (the outer level), clusters and prompts together.

    `values` [S, R]: per seed the statistic on all prompts, then on the resamples of `bootstrap`, the same for every seed. The
    variance is that between seeds over S, which holds whatever is a seed's own, plus the covariance of two seeds over the
    resamples, which is what the prompts have in common; Student's t has the degrees of freedom of Welch and Satterthwaite. To
    add the whole variance over resamples would count noise twice (docs/metrics.md has the coverage). One seed leaves the prompts
    alone. Raises `ClpError` on NaN or another number of resamples.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != 1 + bootstrap.draws or not len(table):
        raise ClpError(f"a statistic over seeds has the shape [seeds, {1 + bootstrap.draws}], not {list(table.shape)}")
    if not np.isfinite(table).all():
        raise ClpError(f"a statistic must be finite, found {int((~np.isfinite(table)).sum())} values that are not")
    seeds, value = len(table), float(table[:, 0].mean())
    covariance = np.atleast_2d(np.cov(table[:, 1:])) / bootstrap.design.share
    if seeds == 1:
        own, common = 0.0, float(covariance[0, 0])
    else:
        own = float(table[:, 0].var(ddof=1)) / seeds
        common = max(0.0, float(covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    return _estimate(value, (own, seeds - 1), (common, bootstrap.design.freedom))


def _estimate(value: float, *parts: tuple[float, float]) -> Estimate:
    """Return the estimate whose variance is a sum of parts, each with its degrees of freedom (Satterthwaite 1946)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(value, value, value, 0.5 if value == 0 else float(value > 0))
    freedom = variance**2 / sum(part**2 / free for part, free in parts if part > 0)
    error = float(np.sqrt(variance))
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(value, value - reach, value + reach, float(stdtr(freedom, value / error)))
