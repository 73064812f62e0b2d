"""What training maximizes, per prompt and weighting: J(w) = (1 - alpha) w.R - alpha KL (CLP, arXiv 2407.15762).

Pure functions of numpy arrays. M weightings, K objectives; every leading axis (prompts, resamples, seeds) is kept. Rewards are
normalized as in training, KL is in nats per response, alpha is the KL strength (0..1).
"""

import numpy as np
from numpy.typing import ArrayLike

from clp_lightning.errors import ClpError
from clp_lightning.frontier.metrics import Array, finite


def objective(rewards: ArrayLike, kl: ArrayLike, weights: ArrayLike, alpha: ArrayLike) -> Array:
    """Return J(w) = (1 - alpha) w.R - alpha KL at every weighting, as `training.losses.regularized_return` has it.

    `rewards` [..., M, K], `kl` [..., M], `weights` [M, K] -> [..., M]; `alpha` is one KL strength, or one per weighting [M].
    J is linear in rewards and KL: the mean of J over prompts is J of the means. Raises `ClpError` on NaN or other shapes.
    """
    w = finite(weights, "weightings")
    vectors = regularized(rewards, kl, alpha)
    if w.shape != vectors.shape[-2:]:
        raise ClpError(f"each point needs its weighting: shapes {list(w.shape)} and {list(vectors.shape)}")
    if np.abs(w.sum(-1) - 1).max(initial=0) > 1e-6:
        raise ClpError("weightings must sum to 1, or w.(R - KL) would count the KL term more or less than once")
    return np.asarray((vectors * w).sum(-1))


def regularized(rewards: ArrayLike, kl: ArrayLike, alpha: ArrayLike) -> Array:
    """Return the vectors (1 - alpha) R_i - alpha KL; weighted with w they are J(w), so that KL cannot buy a frontier.

    `rewards` [..., M, K], `kl` [..., M], `alpha` one KL strength or [M] -> [..., M, K]. Raises `ClpError` on NaN, other shapes
    or a KL strength outside of 0..1.
    """
    r, k, a = finite(rewards, "rewards"), finite(kl, "KL"), finite(alpha, "KL strengths")
    if r.ndim < 1 or k.shape != r.shape[:-1] or a.shape not in ((), r.shape[-2:-1]):
        raise ClpError(
            f"each reward vector needs its KL, and each weighting its KL strength: shapes {list(r.shape)}, {list(k.shape)} and "
            f"{list(a.shape)}"
        )
    if a.size and not ((a >= 0) & (a <= 1)).all():
        raise ClpError(f"alpha must lie between 0 and 1, found {a.min():g} to {a.max():g}")
    return np.asarray((1 - a)[..., None] * r - (a * k)[..., None])


def split_weightings(weightings: ArrayLike, alpha: float) -> tuple[Array, Array]:
    """Return weights that sum to 1 [M, K] and KL strengths [M] of weightings as they are stored [M, K].

    Where a single reward is steered against the KL term its weighting is `1 - alpha`, less than 1: it holds the KL strength.
    Others have `alpha`. Raises `ClpError` on NaN.
    """
    w = finite(weightings, "weightings")
    total = w.sum(-1, keepdims=True)
    swept = (total < 1 - 1e-6) & (w.shape[-1] == 1)
    return np.where(swept, 1.0, w), np.where(swept[..., 0], 1 - total[..., 0], alpha)


def regret(values: ArrayLike) -> Array:
    """Return what each method has less than the best of them at the same weighting: 0 where it is the best.

    `values` [..., methods, M], J of every method at the same weightings -> the same shape, >= 0. Raises `ClpError` on NaN.
    """
    j = finite(values, "values of J")
    return np.asarray(j.max(-2, keepdims=True) - j)
