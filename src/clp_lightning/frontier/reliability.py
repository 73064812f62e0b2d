"""How reliably a policy does what a weighting asks for: its worst prompts, its spread over prompts, and where it lands.

Pure functions of numpy arrays. N weightings, P prompts, K objectives. What is not a mean over prompts comes as a value per
prompt whose mean is the statistic and whose spread is its own to first order (influence function, Hampel 1974), so that one
bootstrap of means serves it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clp_lightning.errors import ClpError

Array = NDArray[np.float64]
WORST = 0.25  # share of prompts that CVaR looks at


def cvar(utilities: ArrayLike, share: float = WORST) -> Array:
    """Return a value per prompt [P] whose mean is the CVaR of `utilities` [N, P]: the mean of each weighting's worst `share`.

    Averaged over the weightings. `max_b b - E max(b - U, 0) / share` (Rockafellar & Uryasev 2000) has its maximum at the
    quantile b. Raises `ClpError` for a share that is not in (0, 1].
    """
    each = np.asarray(utilities, dtype=np.float64)
    if not 0 < share <= 1:
        raise ClpError(f"CVaR looks at a share of the prompts above 0 and at most 1, not {share}")
    place = int(np.ceil(share * each.shape[1] - 1e-9)) - 1
    quantile = np.sort(each, axis=1)[:, [place]]
    return np.asarray((quantile - np.maximum(quantile - each, 0) / share).mean(0))


def covariance_determinant(rewards: ArrayLike) -> Array:
    """Return a value per prompt [P] whose mean is the mean over weightings of the determinant of the rewards' covariance.

    `rewards` [N, P, K]; covariance over prompts at a fixed weighting, divided by P. Smaller: the policy lands more reliably
    (CRD, as the field calls it). By the derivative of a determinant a prompt's value is
    `det (1 - K + d^2)`, with its squared Mahalanobis distance d^2, whose mean is K.
    """
    array = np.asarray(rewards, dtype=np.float64)
    centred = array - array.mean(1, keepdims=True)
    covariance = np.einsum("npi,npj->nij", centred, centred) / array.shape[1]
    adjugate = np.stack([_adjugate(each) for each in covariance])  # det times inverse, also where there is none
    distance = np.einsum("npi,nij,npj->np", centred, adjugate, centred)
    return np.asarray((distance - (array.shape[2] - 1) * np.linalg.det(covariance)[:, None]).mean(0))


def tradeoff_distance(weightings: ArrayLike, points: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """Return how far the reached trade-offs are from those requested, 0..1, mean over N weightings -> [...].

    `weightings` [N, K], `points` [..., N, K], `low` and `high` [..., K]: the smallest and largest mean reward of any method.
    A point's trade-off is each objective's share of its gains `(R_i - low_i) / (high_i - low_i)`, in equal parts where it gains
    nothing; the distance is half of the sum of absolute differences.
    """
    w, reached = np.asarray(weightings, dtype=np.float64), np.asarray(points, dtype=np.float64)
    start, span = (np.asarray(x, dtype=np.float64)[..., None, :] for x in (low, np.subtract(high, low)))
    gains = np.clip(np.divide(reached - start, span, out=np.zeros_like(reached), where=span > 0), 0, 1)
    total = gains.sum(-1, keepdims=True)
    shares = np.divide(
        gains, total, out=np.full_like(gains, 1 / w.shape[1]), where=total > 1e-9
    )  # not of rounding errors
    return np.asarray(np.abs(shares - w).sum(-1).mean(-1) / 2)


def _adjugate(matrix: Array) -> Array:
    """Return the adjugate of a positive semidefinite matrix [K, K] from its eigenvalues: products of the other ones."""
    values, vectors = np.linalg.eigh(matrix)
    others = np.array([np.delete(values, i).prod() for i in range(len(values))])
    return np.asarray((vectors * others) @ vectors.T)
