"""Paired bootstrap over prompts: the same resamples for every method, and intervals that keep what they promise.

Pure functions of numpy arrays. N points, P prompts, K objectives, D draws.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats has it too and takes ten times as long to import

from clp_lightning.errors import ClpError

Array = NDArray[np.float64]
LEVEL = 0.95  # of every interval in this project
CHUNK = 4_000_000  # shares in memory at a time


class Bootstrap:
    """Resamples of P prompts; everything that is measured on the same object is paired.

    A statistic is computed on R = 1 + D versions of the prompts, which lie along the first axis of every array here: all
    prompts once (its value), then D draws with replacement (its spread).
    """

    def __init__(self, prompts: int, draws: int, seed: int) -> None:
        if prompts < 2 or draws < 2:
            raise ClpError(f"a bootstrap needs at least 2 prompts and 2 draws, not {prompts} and {draws}")
        self.prompts, self.draws, self.seed = prompts, draws, seed

    def means(self, rewards: Array) -> Array:
        """Mean rewards [R, N, K] of per-prompt rewards [N, P, K]; raises `ClpError` on NaN or other prompts."""
        n, p, k = rewards.shape
        if p != self.prompts:
            raise ClpError(f"a paired bootstrap needs the same prompts for every method, found {p} and {self.prompts}")
        if not np.isfinite(rewards).all():
            raise ClpError(f"rewards must be finite numbers, found {int((~np.isfinite(rewards)).sum())} that are not")
        flat = rewards.transpose(1, 0, 2).reshape(p, n * k)
        return np.concatenate([weights @ flat for weights in self._weights()]).reshape(-1, n, k)

    def _weights(self) -> Iterator[Array]:
        """Yield the prompts' shares in every version, [some of R, P] at a time: all at once may not fit in memory."""
        yield np.full((1, self.prompts), 1 / self.prompts)
        size = max(1, CHUNK // self.prompts)
        for start in range(0, self.draws, size):
            rng, count = np.random.default_rng([self.seed, start]), min(size, self.draws - start)
            yield rng.multinomial(self.prompts, np.full(self.prompts, 1 / self.prompts), size=count) / self.prompts

    def interval(self, values: ArrayLike) -> tuple[float, float]:
        """Return the standard interval (low, high) of a statistic `values` [R]: its value -+ t times its bootstrap error.

        Efron & Tibshirani 1993, chapter 12, with Student's t and the factor for few prompts of Hesterberg 2015. Percentile
        and BCa intervals covered hypervolumes less evenly (docs/log.md). Raises `ClpError` on NaN.
        """
        value, drawn = self._parts(values)
        reach = float(stdtrit(self.prompts - 1, (1 + LEVEL) / 2)) * self._error(drawn)
        return value - reach, value + reach

    def percentiles(self, values: ArrayLike) -> tuple[float, float]:
        """Return the percentile interval (low, high) of `values` [R]: for shares, whose ends it does not leave."""
        _, drawn = self._parts(values)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def probability(self, difference: ArrayLike) -> float:
        """Probability that a difference [R] is above 0, by the same Student's t as `interval`: how sure the sign is."""
        value, drawn = self._parts(difference)
        error = self._error(drawn)
        if error == 0:
            return 0.5 if value == 0 else float(value > 0)
        return float(stdtr(self.prompts - 1, value / error))

    def _error(self, drawn: Array) -> float:
        return float(drawn.std(ddof=1) * np.sqrt(self.prompts / (self.prompts - 1)))

    def _parts(self, values: ArrayLike) -> tuple[float, Array]:
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (1 + self.draws,):
            raise ClpError(f"a statistic has a value per version of the prompts, {1 + self.draws}, not {array.shape}")
        if not np.isfinite(array).all():
            raise ClpError(f"a statistic must be finite, found {int((~np.isfinite(array)).sum())} values that are not")
        return float(array[0]), array[1:]
