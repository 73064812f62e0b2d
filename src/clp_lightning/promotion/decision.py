"""Is a newly trained policy better than the one in use? The rule, and the figures that it is decided by.

The challenger and the champion answer the same prompts at the same weightings, with the same normalization. Pure functions of
arrays: N weightings, P prompts, K objectives.
"""

from typing import NamedTuple

import numpy as np

from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.seeds import Estimate, hierarchical


class Candidate(NamedTuple):
    """A policy's results: per-prompt rewards [N, P, K] at weightings [N, K]; mean KL (nats per response) and length [N]."""

    weightings: Array
    rewards: Array
    kl: Array
    length: Array


class Decision(NamedTuple):
    """Whether the challenger is promoted, what speaks against it, and the figures; of the champion's None for the first."""

    promoted: bool
    reasons: tuple[str, ...]
    hypervolume: float
    champion_hypervolume: float | None
    difference: Estimate | None  # challenger minus champion; its probability is that the challenger's is larger
    worst_case: dict[str, float]  # objective -> its lowest mean reward over the weightings
    worst_case_fall: dict[str, float]  # objective -> champion's worst case minus the challenger's; empty for the first
    kl: float  # nats per response, mean over the weightings
    length_ratio: float  # mean length as a multiple of the reference policy's


def decide(challenger: Candidate, champion: Candidate | None, reference_length: float, config: Config) -> Decision:
    """Apply the rule of `promotion` in params.yaml; `reference_length` is the reference policy's mean length in tokens.

    Without a champion the guards on KL and length alone decide. Raises `ClpError` when the two were not given the same prompts
    and weightings, or on NaN.
    """
    rule, point = config.promotion, [config.evaluation.reference_point] * len(config.objectives)
    bootstrap = Bootstrap(challenger.rewards.shape[1], config.evaluation.bootstrap_draws, config.seed)

    def volumes(candidate: Candidate) -> Array:
        return np.array([frontier.hypervolume(points, point) for points in bootstrap.means(candidate.rewards)])

    own, reasons = volumes(challenger), []
    worst = _worst(challenger, config)
    difference, falls, theirs = None, {}, None
    if champion is not None:
        if (
            champion.rewards.shape != challenger.rewards.shape
            or np.abs(champion.weightings - challenger.weightings).max() > 1e-9
        ):
            raise ClpError(
                "challenger and champion were not evaluated at the same prompts and weightings; evaluate both alike"
            )
        theirs = volumes(champion)
        difference = hierarchical((own - theirs)[None], bootstrap)
        falls = {name: before - worst[name] for name, before in _worst(champion, config).items()}
        if difference.probability < rule.probability:
            reasons.append(
                f"its hypervolume is the larger one with probability {difference.probability:.3f}, below {rule.probability:g}"
            )
        reasons += [
            f"the worst case of {name} falls by {fall:.2f}, more than {rule.worst_case_margin:g}"
            for name, fall in falls.items()
            if fall > rule.worst_case_margin
        ]
    kl, ratio = float(challenger.kl.mean()), float(challenger.length.mean() / reference_length)
    if kl > rule.max_kl:
        reasons.append(f"its KL to the reference policy is {kl:.2f} nats per response, more than {rule.max_kl:g}")
    if not 1 / rule.max_length_ratio <= ratio <= rule.max_length_ratio:
        reasons.append(
            f"its answers are {ratio:.2f} times as long as the reference policy's, beyond {rule.max_length_ratio:g}"
        )
    return Decision(
        promoted=not reasons, reasons=tuple(reasons), hypervolume=float(own[0]),
        champion_hypervolume=None if theirs is None else float(theirs[0]), difference=difference, worst_case=worst,
        worst_case_fall=falls, kl=kl, length_ratio=ratio,
    )  # fmt: skip


def _worst(candidate: Candidate, config: Config) -> dict[str, float]:
    return dict(zip(config.objectives, candidate.rewards.mean(1).min(0).tolist(), strict=True))
