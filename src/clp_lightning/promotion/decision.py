"""Is a newly trained policy better than the one in use? The rule, and the figures that it is decided by.

The challenger and what it is compared with (the champion, or the reference policy where there is none) answer the same prompts at
the same weightings, with the same normalization. Pure functions of arrays: N weightings, P prompts, K objectives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.seeds import Estimate, hierarchical
from clp_lightning.store.objective import at_weightings, measure
from clp_lightning.store.resampling import Setting, resample
from clp_lightning.store.results import Sampled

NAMES = {  # of `promotion.statistic`, as a reason puts them
    "mean_j": "mean J",
    "hypervolume": "hypervolume",
    "hypervolume_above_reference": "hypervolume above the reference policy",
    "regularized_hypervolume": "hypervolume of regularized rewards",
    "regularized_hypervolume_above_reference": "hypervolume of regularized rewards above the reference policy",
}


class Candidate(NamedTuple):
    """A policy's answers, and its mean length in tokens at each weighting [N]."""

    sampled: Sampled
    length: Array


class Decision(NamedTuple):
    """Whether the challenger is promoted, what speaks against it, and the figures."""

    promoted: bool
    reasons: tuple[str, ...]
    value: float  # the challenger's `promotion.statistic`
    other_value: float  # that of the champion, or of the reference policy
    difference: Estimate  # challenger minus other; its probability is that the challenger's is larger
    worst_case: dict[str, float]  # objective -> its lowest mean reward over the weightings
    worst_case_fall: dict[str, float]  # objective -> champion's worst case minus the challenger's; empty for the first
    kl: float  # nats per response, mean over the weightings
    length_ratio: float  # mean length as a multiple of the reference policy's


def decide(
    challenger: Candidate, champion: Candidate | None, reference: Candidate, groups: Sequence[str], config: Config
) -> Decision:
    """Apply the rule of `promotion` in params.yaml; `groups` [P] are the prompts'.

    Without a champion the challenger has to be better than the reference policy, and the guard on worst cases is left out:
    weightings trade one objective for another. Raises `ClpError` when the policies were not given the same prompts and
    weightings, or on NaN.
    """
    rule, other = config.promotion, champion or reference
    _check_alike(challenger, champion, reference)
    value, other_value, difference = _compared(challenger, other, reference, groups, config)
    worst, falls, reasons = _worst(challenger, config), {}, []
    against = "the reference policy" if champion is None else "the champion"
    if difference.probability < rule.probability:
        reasons.append(
            f"its {NAMES[rule.statistic]} is larger than that of {against} with probability {difference.probability:.3f}, "
            f"below {rule.probability:g}"
        )
    if champion is not None:
        falls = {name: before - worst[name] for name, before in _worst(champion, config).items()}
        reasons += [
            f"the worst case of {name} falls by {fall:.2f}, more than {rule.worst_case_margin:g}"
            for name, fall in falls.items()
            if fall > rule.worst_case_margin
        ]
    kl, ratio = float(challenger.sampled.kl.mean()), float(challenger.length.mean() / reference.length.mean())
    if kl > rule.max_kl:
        reasons.append(f"its KL to the reference policy is {kl:.2f} nats per response, more than {rule.max_kl:g}")
    if not 1 / rule.max_length_ratio <= ratio <= rule.max_length_ratio:
        reasons.append(
            f"its answers are {ratio:.2f} times as long as the reference policy's, beyond {rule.max_length_ratio:g}"
        )
    return Decision(not reasons, tuple(reasons), value, other_value, difference, worst, falls, kl, ratio)


def _check_alike(challenger: Candidate, champion: Candidate | None, reference: Candidate) -> None:
    own, prompts = challenger.sampled, challenger.sampled.rewards.shape[1]
    if own.weightings is None:
        raise ClpError(f"{own.method} takes no weightings; promotion.method names one that does")
    theirs = own if champion is None else champion.sampled
    if (
        theirs.rewards.shape != own.rewards.shape
        or theirs.weightings is None
        or np.abs(theirs.weightings - own.weightings).max() > 1e-9
        or reference.sampled.rewards.shape[1] != prompts
    ):
        raise ClpError(
            "challenger and champion were not evaluated at the same prompts and weightings; evaluate both alike"
        )


def _compared(
    challenger: Candidate, other: Candidate, reference: Candidate, groups: Sequence[str], config: Config
) -> tuple[float, float, Estimate]:
    """Return the statistic of the challenger, of the other, and their paired difference with its interval."""
    setting = Setting(
        config.objectives, [config.evaluation.reference_point] * len(config.objectives),
        config.evaluation.bootstrap_draws, config.seed, config.training.alpha, tuple(groups), config.evaluation.weightings,
    )  # fmt: skip
    named = {"reference": reference, "other": other, "challenger": challenger}
    found = [each.sampled._replace(method=name) for name, each in named.items()]
    bootstrap, resampled, _ = resample(found, setting)
    placed = at_weightings(resampled)
    own, theirs = (
        measure(config.promotion.statistic, placed[name], placed["reference"], setting.alpha, setting.reference_point)
        for name in ("challenger", "other")
    )
    return float(own[0]), float(theirs[0]), hierarchical((own - theirs)[None], bootstrap)


def _worst(candidate: Candidate, config: Config) -> dict[str, float]:
    return dict(zip(config.objectives, candidate.sampled.rewards.mean(1).min(0).tolist(), strict=True))
