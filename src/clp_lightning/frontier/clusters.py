"""What unequal clusters of prompts leave of a bootstrap: how alike their prompts are, degrees of freedom, bias.

Pure functions of numpy arrays. P prompts, C clusters.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clp_lightning.errors import ClpError

Array = NDArray[np.float64]


class Design(NamedTuple):
    """What is known of a variance that is estimated from resampled clusters."""

    share: float  # of the true variance that the resamples show on average, below 1
    freedom: float  # degrees of freedom of its estimate


def sizes(clusters: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each prompt's cluster as a number [P], and the clusters' sizes [C], of any labels [P]."""
    _, cluster, counts = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    return cluster.astype(np.int64), counts.astype(np.int64)


def design(counts: ArrayLike, correlation: float) -> Design:
    """Bias and degrees of freedom of the variance of a mean over clusters of unequal sizes `counts` [C].

    As Bell & McCaffrey 2002 for cluster-robust errors of a mean, where the prompts of a cluster have the intraclass
    `correlation` (0..1). Equal clusters have (C - 1) / C and C - 1. With u = n / P, q = u * u, s = sum(q) and v the variance of a
    cluster's mean, the estimate is the quadratic form diag(q) - u q' - q u' + s u u' in the clusters' means.
    """
    n = np.asarray(counts, dtype=np.float64)
    if (n == n[0]).all():
        return Design(1 - 1 / len(n), len(n) - 1.0)
    u = n / n.sum()
    q, v = u * u, correlation + (1 - correlation) / n
    # the form between the clusters' standardized means: a diagonal, and a part of rank 2
    diagonal, sides = q * v, np.stack([u, q], axis=1) * np.sqrt(v)[:, None]
    core = np.array([[q.sum(), -1.0], [-1.0, 0.0]])
    inner = core @ sides.T @ sides
    trace = diagonal.sum() + np.trace(inner)
    square = (diagonal**2).sum() + 2 * np.trace(core @ (sides.T * diagonal) @ sides) + np.trace(inner @ inner)
    return Design(float(trace / (q * v).sum()), float(trace**2 / square))


def intraclass_correlation(values: ArrayLike, clusters: ArrayLike) -> float:
    """Correlation (0..1) of two prompts of one cluster: the analysis of variance estimate for unequal clusters, not below 0.

    `values` [..., P], `clusters` [P]; the mean squares of leading axes are added up. 0 where no cluster has two prompts, or
    there is one cluster only. Donner 1986. Raises `ClpError` on NaN.
    """
    x, (cluster, n) = np.asarray(values, dtype=np.float64), sizes(clusters)
    if x.shape[-1] != len(cluster):
        raise ClpError(f"each prompt needs its group: {x.shape[-1]} prompts, {len(cluster)} groups")
    if not np.isfinite(x).all():
        raise ClpError(f"values must be finite numbers, found {int((~np.isfinite(x)).sum())} that are not")
    flat, count, prompts = x.reshape(-1, len(cluster)), len(n), len(cluster)
    if count in (1, prompts):
        return 0.0
    means = np.stack([np.bincount(cluster, row) for row in flat]) / n
    within = ((flat - means[:, cluster]) ** 2).sum() / (prompts - count)
    between = (n * (means - flat.mean(-1, keepdims=True)) ** 2).sum() / (count - 1)
    usual = (prompts - (n**2).sum() / prompts) / (count - 1)
    own = max(0.0, float(between - within) / usual)
    return own / (own + float(within)) if own > 0 else 0.0
