"""One paired bootstrap over all methods of a run: what every statistic of it is computed from."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clp_lightning.frontier.bootstrap import Bootstrap, cluster_bootstrap
from clp_lightning.frontier.metrics import Array, wins
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


def resample(
    found: Sequence[Sampled], setting: Setting
) -> tuple[Bootstrap, list[Resampled], dict[tuple[str, str], Array]]:
    """Return the resamples, every method on them, and the win rate [R] of every pair, from one pass over the resamples.

    The mean over prompts of each prompt's own rate is the rate, so that it is averaged like a reward. Raises `ClpError` where
    prompts or groups do not allow an interval.
    """
    values = np.stack([per_prompt(each, setting.alpha) for each in found])
    bootstrap = cluster_bootstrap(values, setting.groups, setting.draws, setting.seed)
    pairs = {(a.method, b.method): won for a, b in itertools.permutations(found, 2) if (won := _wins(a, b)) is not None}
    resampled, rates = on_versions(found, bootstrap, list(pairs.values()))
    return bootstrap, resampled, dict(zip(pairs, rates, strict=True))


def on_versions(
    found: Sequence[Sampled], bootstrap: Bootstrap, values: Sequence[Array] = ()
) -> tuple[list[Resampled], list[Array]]:
    """Return methods on every version of the prompts and, of other `values` [P], their means [R]."""
    flat = [np.concatenate([f.rewards, f.kl[..., None]], axis=-1).transpose(0, 2, 1) for f in found]  # [N, K + 1, P]
    rows = [each.reshape(-1, each.shape[-1]) for each in flat]
    together = bootstrap.averages(np.concatenate([*rows, *(each[None] for each in values)])).T
    *parts, rates = np.split(together, np.cumsum([len(each) for each in rows]), axis=1)
    shaped = [part.reshape(len(part), *each.shape[:2]) for part, each in zip(parts, flat, strict=True)]
    return [Resampled(f, part[..., :-1], part[..., -1]) for f, part in zip(found, shaped, strict=True)], list(rates.T)


def _wins(a: Sampled, b: Sampled) -> Array | None:
    """Return each prompt's win rate [P]; None if no weighting was given to both. The reference answers every one alike."""
    if (matched := matching(a.weightings, b.weightings)) is None:
        return None
    weightings, i, j = matched
    return wins(weightings, a.rewards[i], b.rewards[j])


def per_prompt(found: Sampled, alpha: float) -> Array:
    """Return each prompt's J [P], averaged over the weightings; of a policy that takes none its mean reward."""
    if found.weightings is None:
        return np.asarray(found.rewards.mean((0, 2)))
    weights, alphas = split_weightings(found.weightings, alpha)
    return np.asarray(objective(found.rewards.transpose(1, 0, 2), found.kl.T, weights, alphas).mean(-1))


def matching(at_a: Array | None, at_b: Array | None) -> tuple[Array, Index, Index] | None:
    """Return the weightings [M, K] that both A and B were given, and which of each's they are [M]; None if there is none.

    A policy that takes none (None) answers every one alike.
    """
    if at_a is None and at_b is None:
        return None
    if at_a is None or at_b is None:
        known = at_a if at_b is None else at_b
        assert known is not None
        every, same = np.arange(len(known)), np.zeros(len(known), dtype=int)
        return known, *((same, every) if at_a is None else (every, same))
    i, j = np.nonzero(np.abs(at_a[:, None] - at_b).max(-1) < 1e-9)
    return (at_a[i], i, j) if len(i) else None
