"""One paired bootstrap over all methods of a run: what every statistic of it is computed from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clp_lightning.frontier.bootstrap import Bootstrap, cluster_bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.objective import objective, split_weightings
from clp_lightning.store.results import Sampled

Index = NDArray[np.signedinteger[Any]]


class Setting(NamedTuple):
    """What a run's statistics depend on besides the answers; `groups` [P] of the prompts, None where they are not known."""

    objectives: tuple[str, ...]
    reference_point: list[float]
    draws: int
    seed: int
    alpha: float  # the KL strength of J
    groups: tuple[str, ...] | None
    per_edge: int  # points per edge of the lattice of weightings


class Resampled(NamedTuple):
    """A method on every version of the prompts: mean rewards [R, N, K] and mean KL [R, N]; see `Bootstrap`."""

    sampled: Sampled
    means: Array
    kl: Array

    @property
    def method(self) -> str:
        """Its name."""
        return self.sampled.method

    @property
    def weightings(self) -> Array | None:
        """The weightings [N, K]; None for a policy that takes none."""
        return self.sampled.weightings


def resample(found: Sequence[Sampled], setting: Setting) -> tuple[Bootstrap, list[Resampled]]:
    """Return the resamples and every method on them; raises `ClpError` where prompts or groups do not allow an interval."""
    values = np.concatenate([per_prompt(each, setting.alpha) for each in found])
    bootstrap = cluster_bootstrap(values, setting.groups, setting.draws, setting.seed)
    return bootstrap, [on_versions(each, bootstrap) for each in found]


def on_versions(found: Sampled, bootstrap: Bootstrap) -> Resampled:
    """Return a method on every version of the prompts."""
    both = bootstrap.means(np.concatenate([found.rewards, found.kl[..., None]], axis=-1))
    return Resampled(found, both[..., :-1], both[..., -1])


def per_prompt(found: Sampled, alpha: float) -> Array:
    """Return J [N, P] of each weighting and prompt; of a policy that takes no weighting its rewards [K, P]."""
    if found.weightings is None:
        return found.rewards.transpose(0, 2, 1).reshape(-1, found.rewards.shape[1])
    weights, alphas = split_weightings(found.weightings, alpha)
    return objective(found.rewards.transpose(1, 0, 2), found.kl.T, weights, alphas).T


def matching(a: Resampled, b: Resampled) -> tuple[Array, Index, Index] | None:
    """Return the weightings [M, K] that both were given, and which of A's and of B's they are [M]; None if there is none.

    A policy that takes none answers every one alike.
    """
    at_a, at_b = a.weightings, b.weightings
    if at_a is None and at_b is None:
        return None
    if at_a is None or at_b is None:
        known = at_a if at_b is None else at_b
        assert known is not None
        every, same = np.arange(len(known)), np.zeros(len(known), dtype=int)
        return known, *((same, every) if at_a is None else (every, same))
    i, j = np.nonzero(np.abs(at_a[:, None] - at_b).max(-1) < 1e-9)
    return (at_a[i], i, j) if len(i) else None
