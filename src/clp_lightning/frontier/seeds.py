"""Statistics over training seeds: a mean whose interval covers seeds and prompts together."""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t

from clp_lightning.frontier.bootstrap import LEVEL
from clp_lightning.frontier.metrics import Array


class Estimate(NamedTuple):
    """A statistic over training seeds: its mean, its 95 % interval, and the probability that it is above 0."""

    value: float
    low: float
    high: float
    probability: float


def nested(values: Array, prompts: int) -> Estimate:
    """Mean of a statistic over training seeds with an interval for seeds and prompts together.

    `values` [S, R]: per seed the statistic on all prompts, then on bootstrap resamples of them, the same for every seed. The
    variance is that between seeds over S, plus that over resamples of the mean; Student's t has the degrees of freedom of
    Welch and Satterthwaite. One seed leaves the prompts alone.
    """
    seeds = len(values)
    value = float(values[:, 0].mean())
    by_prompts = float(values[:, 1:].mean(0).var(ddof=1)) * prompts / (prompts - 1)
    by_seeds = float(values[:, 0].var(ddof=1)) / seeds if seeds > 1 else 0.0
    variance = by_prompts + by_seeds
    if variance == 0:
        return Estimate(value, value, value, 0.5 if value == 0 else float(value > 0))
    freedom = variance**2 / (by_prompts**2 / (prompts - 1) + (by_seeds**2 / (seeds - 1) if seeds > 1 else 0.0))
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * np.sqrt(variance)
    return Estimate(value, value - reach, value + reach, float(stdtr(freedom, value / np.sqrt(variance))))
