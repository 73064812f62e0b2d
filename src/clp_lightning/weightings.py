"""Weightings on the simplex: validate, parse, sample, lay out as a grid.

A weighting `w` has one non-negative entry per objective and sums to 1. Arrays are [N, K]: N weightings, K objectives.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from clp_lightning.errors import UsageError, plural

SUM_TOLERANCE = 1e-6


def to_array(weighting: Mapping[str, float], objectives: Sequence[str]) -> np.ndarray:
    """Return a weighting as float64 [K] in the order of `objectives`; an objective left out has weight 0.

    Raises `UsageError` for unknown objectives, entries that are negative or not finite, and sums other than 1.
    """
    known = ", ".join(objectives)
    for name, value in weighting.items():
        if name not in objectives:
            raise UsageError(f"weighting: unknown objective {name!r}; this model knows {known}")
        if not np.isfinite(value) or value < 0:
            raise UsageError(f"weighting: {name}={value} must be a number >= 0")
    row = np.array([weighting.get(name, 0.0) for name in objectives], dtype=np.float64)
    if abs(row.sum() - 1) > SUM_TOLERANCE:
        raise UsageError(
            f"weighting: entries sum to {row.sum():g}, not 1; give shares of {known}, e.g. {_example(objectives)}"
        )
    return row


def to_rows(
    weightings: Mapping[str, float] | Sequence[Mapping[str, float]] | np.ndarray, rows: int, objectives: Sequence[str]
) -> np.ndarray:
    """Return float64 [rows, K]: one weighting for all rows, or one each; raises `UsageError` as `to_array` does."""
    if isinstance(weightings, np.ndarray):
        array = weightings
    elif isinstance(weightings, Mapping):
        array = np.tile(to_array(weightings, objectives), (rows, 1))
    else:
        array = np.stack([to_array(weighting, objectives) for weighting in weightings])
    if array.shape != (rows, len(objectives)):
        raise UsageError(
            f"{plural(rows, 'prompt')} but weightings of shape {array.shape}; give one weighting, or one per prompt"
        )
    return array


def which(rows: np.ndarray, listed: np.ndarray, objectives: Sequence[str]) -> np.ndarray:
    """Return one-hot rows [N, M]: which of `listed` [M, K] each of `rows` [N, K] is; raises `UsageError` if none."""
    same = np.abs(rows[:, None] - listed).max(-1) < SUM_TOLERANCE
    if not same.any(1).all():
        known = "; ".join(describe(row.tolist(), objectives) for row in listed)
        missing = describe(rows[int(np.argmin(same.any(1)))].tolist(), objectives)
        raise UsageError(f"weighting: there is no model for {missing}; this policy holds one for each of {known}")
    return np.eye(len(listed))[same.argmax(1)]


def parse(text: str, objectives: Sequence[str]) -> np.ndarray:
    """Read `"a=0.3,b=0.7"` as float64 [K]; raises `UsageError` as `to_array` does, and for malformed text."""
    weighting: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"weighting: cannot read {part!r}; write objective=number, e.g. {_example(objectives)}")
        if name in weighting:
            raise UsageError(f"weighting: {name} is given twice; name each objective once")
        weighting[name] = number
    return to_array(weighting, objectives)


def describe(weighting: Sequence[float], objectives: Sequence[str]) -> str:
    """Write a weighting the way `parse` reads it."""
    return ",".join(f"{name}={value:.4g}" for name, value in zip(objectives, weighting, strict=True))


def alphas(values: float | Sequence[float] | np.ndarray, rows: int) -> np.ndarray:
    """Return KL strengths as float64 [rows]: one for all rows, or one each; raises `UsageError` outside of 0..1."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), (rows,)):
        raise UsageError(
            f"alpha: {plural(rows, 'prompt')} but values of shape {array.shape}; give one value, or one per prompt"
        )
    if not ((array >= 0) & (array <= 1)).all():
        raise UsageError(f"alpha: must lie between 0 and 1 (1 is the reference policy), but found {array.tolist()}")
    return np.broadcast_to(array, (rows,))


def lattice(objectives: int, points_per_edge: int) -> np.ndarray:
    """Return the simplex lattice, float64 [N, K], lexicographically ascending: every vertex, equal steps between.

    For K = 2 it has `points_per_edge` rows from (0, 1) to (1, 0) (Das and Dennis 1998).
    """
    steps = points_per_edge - 1
    rows = [row for row in itertools.product(range(steps + 1), repeat=objectives) if sum(row) == steps]
    return np.array(rows, dtype=np.float64) / steps


def grid(objectives: int, points_per_edge: int, *, off_grid: int, seed: int) -> np.ndarray:
    """Return the lattice and `off_grid` weightings drawn uniformly from the simplex, float64 [N, K], in ascending order.

    One objective has a single weighting, so that there is none beside it.
    """
    drawn = dirichlet(np.random.default_rng(seed), off_grid, objectives, concentration=1.0)
    between = drawn[~on_lattice(drawn, points_per_edge)]
    return np.unique(np.concatenate([lattice(objectives, points_per_edge), between]), axis=0)


def on_lattice(weightings: np.ndarray, points_per_edge: int) -> np.ndarray:
    """Mark the weightings [N, K] that lie on the lattice -> bool [N]."""
    steps = weightings * (points_per_edge - 1)
    return np.asarray((np.abs(steps - np.round(steps)) < 1e-6).all(-1))


def dirichlet(rng: np.random.Generator, count: int, objectives: int, *, concentration: float) -> np.ndarray:
    """Draw [count, K] weightings from Dirichlet(concentration, ..., concentration); 1 is uniform, less favours corners."""
    return rng.dirichlet(np.full(objectives, concentration), size=count)


def mixture(
    rng: np.random.Generator, count: int, objectives: int, *, concentration: float, corner_mass: float
) -> np.ndarray:
    """Draw [count, K] weightings: a vertex with probability `corner_mass`, else from Dirichlet(concentration)."""
    inner = dirichlet(rng, count, objectives, concentration=concentration)
    corner = rng.random(count) < corner_mass
    return np.where(corner[:, None], vertices(rng, count, objectives), inner)


def rotations(weightings: np.ndarray) -> np.ndarray:
    """Return [K, N, K]: the weightings [N, K] with their entries moved on by 0, 1, ... K - 1 objectives.

    A symmetric distribution of weightings stays as it is, and over its rotations each objective has mean weight 1 / K.
    """
    return np.stack([np.roll(weightings, shift, axis=1) for shift in range(weightings.shape[1])])


def rotations_of_samples(objectives: int, samples: int) -> int:
    """Return among how many rotations of a weighting samples can be divided evenly, two or more each; 1 if none.

    2 of 2 objectives for 4 samples; 3 of 3 for 6, but 2 for 4; 1 for 2 or 3 samples.
    """
    return max(
        count for count in range(1, objectives + 1) if count == 1 or (samples % count == 0 and samples >= 2 * count)
    )


def antithetic(rng: np.random.Generator, count: int, drawn: np.ndarray) -> np.ndarray:
    """Return [count, K] rows: those of `drawn` [>= count / K, K] and their rotations, in random order.

    Each row keeps its distribution, which must be symmetric; with K rows from each drawn one every objective has the same mean
    weight in a step, so that no expert's share of it is left to chance (antithetic variates).
    """
    each = rotations(drawn).swapaxes(0, 1).reshape(-1, drawn.shape[1])
    return rng.permutation(each[:count])


def vertices(rng: np.random.Generator, count: int, objectives: int) -> np.ndarray:
    """Draw [count, K] one-hot weightings in equal shares, in random order (rewarded soups, arXiv 2306.04488)."""
    return shares(rng, count, np.eye(objectives))


def smoothed_vertices(objectives: int, *, concentration: float) -> np.ndarray:
    """Return [K, K]: row i is E[w_i w] of a symmetric Dirichlet distribution, scaled to sum to 1.

    E[w_i^2] = c (c + 1) / (K c (K c + 1)) and E[w_i w_j] = c^2 / (K c (K c + 1)), so the row is c + 1 at i and c elsewhere, over
    K c + 1. With c = 0.4: (0.78, 0.22) of two, (0.64, 0.18, 0.18) of three objectives.
    """
    c = concentration
    return np.asarray((np.eye(objectives) + c) / (objectives * c + 1))


def backbones(objectives: int, *, beta: float) -> np.ndarray:
    """Return [K, K]: beta in the diagonal and (1 - beta) / (K - 1) elsewhere, for beta > 1 / K (arXiv 2502.10762).

    These are smoothed vertices of another scale: (c + 1) / (K c + 1) = beta for c = (1 - beta) / (K beta - 1).
    """
    return smoothed_vertices(objectives, concentration=(1 - beta) / (objectives * beta - 1))


def shares(rng: np.random.Generator, count: int, listed: np.ndarray) -> np.ndarray:
    """Draw [count, K] rows of `listed` [M, K] in equal shares, in random order."""
    order = (np.arange(count) + rng.integers(len(listed))) % len(listed)
    return listed[rng.permutation(order)]


def _example(objectives: Sequence[str]) -> str:
    return describe([1 / len(objectives)] * len(objectives), objectives)
