"""Paired bootstrap over prompts in clusters: the same resamples for every method, and intervals that keep what they promise.

Pure functions of numpy arrays. N points, P prompts, K objectives, C clusters, D draws, S training seeds.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats has it too and takes ten times as long to import

from clp_lightning.errors import ClpError
from clp_lightning.frontier.clusters import Design, design, intraclass_correlation, sizes

Array = NDArray[np.float64]
LEVEL = 0.95  # of every interval in this project
CHUNK = 4_000_000  # shares in memory at a time


def cluster_bootstrap(values: ArrayLike, clusters: ArrayLike | None, draws: int = 2000, seed: int = 0) -> "Bootstrap":
    """Return the resamples of prompts in `clusters` [P] (services, any labels), for statistics of `values` [..., P].

    How alike the prompts of a cluster are is measured on `values`. Raises as `Bootstrap`.
    """
    array = np.asarray(values, dtype=np.float64)
    correlation = 0.0 if clusters is None else intraclass_correlation(array, clusters)
    return Bootstrap(array.shape[-1], draws, seed, clusters=clusters, correlation=correlation)


class Bootstrap:
    """Resamples of P prompts; everything that is measured on the same object is paired.

    Clusters are drawn with replacement, each with all of its prompts (Davison & Hinkley 1997, section 3.8: to draw its prompts
    again would count the spread within clusters twice). Without `clusters` every prompt is one of its own. `correlation` (0..1)
    is that within clusters; it decides how many degrees of freedom unequal clusters leave.

    A statistic is computed on R = 1 + D versions of the prompts, which lie along the first axis of every array here: all
    prompts once (its value), then D draws with replacement (its spread).
    """

    def __init__(
        self, prompts: int, draws: int, seed: int, *, clusters: ArrayLike | None = None, correlation: float = 0.0
    ) -> None:
        if prompts < 2 or draws < 2:
            raise ClpError(f"a bootstrap needs at least 2 prompts and 2 draws, not {prompts} and {draws}")
        labels = np.arange(prompts) if clusters is None else np.asarray(clusters)
        if labels.shape != (prompts,):
            raise ClpError(f"a bootstrap needs a cluster for each of {prompts} prompts, not {list(labels.shape)}")
        self.prompts, self.draws, self.seed = prompts, draws, seed
        self._cluster, self._sizes = sizes(labels)
        if len(self._sizes) < 2:
            raise ClpError(
                f"all {prompts} prompts are of one group ({labels[0]}): an interval over groups needs several"
            )
        self.design: Design = design(self._sizes, correlation)

    def means(self, rewards: Array) -> Array:
        """Mean rewards [R, N, K] of per-prompt rewards [N, P, K]; raises `ClpError` on NaN or other prompts."""
        n, p, k = rewards.shape
        if p != self.prompts:
            raise ClpError(f"a paired bootstrap needs the same prompts for every method, found {p} and {self.prompts}")
        if not np.isfinite(rewards).all():
            raise ClpError(f"rewards must be finite numbers, found {int((~np.isfinite(rewards)).sum())} that are not")
        flat = rewards.transpose(1, 0, 2).reshape(p, n * k)
        return np.concatenate([weights @ flat for weights in self._weights()]).reshape(-1, n, k)

    def averages(self, values: ArrayLike) -> Array:
        """Mean over prompts of `values` [N, P] in every version, [N, R]: the shape that `hierarchical` takes."""
        return self.means(np.asarray(values, dtype=np.float64)[..., None])[..., 0].T

    def _weights(self) -> Iterator[Array]:
        """Yield the prompts' shares in every version, [some of R, P] at a time: all at once may not fit in memory."""
        yield np.full((1, self.prompts), 1 / self.prompts)
        count, step = len(self._sizes), max(1, CHUNK // self.prompts)
        for start in range(0, self.draws, step):
            rng, rows = np.random.default_rng([self.seed, start]), min(step, self.draws - start)
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=rows)
            yield drawn[:, self._cluster] / (drawn @ self._sizes)[:, None]

    def interval(self, values: ArrayLike) -> tuple[float, float]:
        """Return the standard interval (low, high) of a statistic `values` [R]: its value -+ t times its bootstrap error.

        Efron & Tibshirani 1993, chapter 12, with Student's t and the factor for few prompts of Hesterberg 2015; of unequal
        clusters both are those of `design`. Percentile and BCa intervals covered hypervolumes less evenly (docs/log.md).
        Raises `ClpError` on NaN.
        """
        value, drawn = self._parts(values)
        reach = float(stdtrit(self.design.freedom, (1 + LEVEL) / 2)) * self.error(drawn)
        return value - reach, value + reach

    def percentiles(self, values: ArrayLike) -> tuple[float, float]:
        """Return the percentile interval (low, high) of `values` [R]: for shares, whose ends it does not leave."""
        _, drawn = self._parts(values)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def probability(self, difference: ArrayLike) -> float:
        """Probability that a difference [R] is above 0, by the same Student's t as `interval`: how sure the sign is."""
        value, drawn = self._parts(difference)
        error = self.error(drawn)
        if error == 0:
            return 0.5 if value == 0 else float(value > 0)
        return float(stdtr(self.design.freedom, value / error))

    def error(self, drawn: Array) -> float:
        """Standard error of a statistic from its `drawn` versions [D]."""
        return float(drawn.std(ddof=1) / np.sqrt(self.design.share))

    def _parts(self, values: ArrayLike) -> tuple[float, Array]:
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (1 + self.draws,):
            raise ClpError(f"a statistic has a value per version of the prompts, {1 + self.draws}, not {array.shape}")
        if not np.isfinite(array).all():
            raise ClpError(f"a statistic must be finite, found {int((~np.isfinite(array)).sum())} values that are not")
        return float(array[0]), array[1:]
