"""The statistics of how reliably methods do what a weighting asks for: rows of the table `metrics`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.reliability import covariance_determinant, cvar, tradeoff_distance
from clp_lightning.store.objective import at_weightings
from clp_lightning.store.resampling import Resampled

Rows = list[tuple[Any, ...]]


def on_reliability(resampled: Sequence[Resampled], bootstrap: Bootstrap) -> Rows:
    """Return `cvar`, `reward_covariance` and `tradeoff_distance` of every method, as far as each has a meaning.

    A policy that takes no weighting is measured at all that any method was given; where no method takes one there is neither
    CVaR nor trade-off, and with one objective no trade-off.
    """
    placed = at_weightings(resampled)
    values = {(each.method, "reward_covariance"): covariance_determinant(each.sampled.rewards) for each in resampled}
    for method, found in placed.items():
        utilities = (found.sampled.rewards * found.weightings[:, None]).sum(-1)  # type: ignore[index]
        values[method, "cvar"] = cvar(utilities)
    versions = bootstrap.averages(np.stack(list(values.values())))
    rows: Rows = [
        (method, name, None, each[0], *bootstrap.interval(each))
        for (method, name), each in zip(values, versions, strict=True)
    ]
    everywhere = np.concatenate([each.means for each in resampled], axis=1)  # [R, all points, K]
    if everywhere.shape[-1] > 1:
        low, high = everywhere.min(1), everywhere.max(1)
        for method, found in placed.items():
            distance = tradeoff_distance(found.weightings, found.means, low, high)  # type: ignore[arg-type]
            rows.append((method, "tradeoff_distance", None, distance[0], *bootstrap.interval(distance)))
    return rows
