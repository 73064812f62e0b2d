"""The exact optimum on a testbed small enough to enumerate: what the best steerable policy would do, at every weighting.

Shapes: P prompts, N = V**T responses (T tokens of a vocabulary of V, first token slowest), K objectives, W weightings.
Log-probabilities are of whole responses, natural, and normalized over N.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from clp_lightning.frontier import metrics as frontier

Array = NDArray[np.float64]


class Problem(NamedTuple):
    """What is to be learned; everything about it is known."""

    ref_log_probs: Array  # [P, N], the reference policy
    rewards: Array  # [P, N, K]
    alpha: float  # KL strength


class Score(NamedTuple):
    """A method against the optimum, over a grid of weightings."""

    hypervolume_ratio: float  # of the regularized rewards, 1 is the optimum
    regret_mean: float  # V*(w) - V(pi_w), reward units
    regret_max: float


def optimum(problem: Problem, weightings: Array) -> Array:
    """Return log-probabilities [W, P, N] of the optimal policies: `pi*_w ~ pi_ref exp((1 - alpha) / alpha w.R)`.

    The maximum of `(1 - alpha) E[w.R] - alpha KL` over all policies (arXiv 2407.15762; Korbak et al. 2022). Needs alpha > 0.
    """
    scalarized = np.einsum("wk,pnk->wpn", weightings, problem.rewards)
    tilt = (1 - problem.alpha) / problem.alpha
    return log_softmax(problem.ref_log_probs + tilt * scalarized, axis=-1)


def regularized_rewards(problem: Problem, log_probs: Array) -> Array:
    """Return `(1 - alpha) E[R_i] - alpha KL`, exactly, [W, K] of policies `log_probs` [W, P, N], averaged over prompts.

    Weighted with w it is the objective V(pi; w). No policy's vector lies beyond the optimal policies' frontier: the set of
    attainable vectors is convex, and each of them maximizes its own w. Rewards alone have no such limit: a policy that
    ignores the KL term would enclose more than the optimum.
    """
    probs = np.exp(log_probs)
    rewards = np.einsum("wpn,pnk->wk", probs, problem.rewards) / len(problem.rewards)
    kl = (probs * np.where(probs > 0, log_probs - problem.ref_log_probs, 0.0)).sum(-1).mean(-1)
    return (1 - problem.alpha) * rewards - problem.alpha * kl[:, None]


def score(problem: Problem, weightings: Array, log_probs: Array) -> Score:
    """Compare policies [W, P, N], one per weighting [W, K], with the optimal ones of the same weightings.

    The reference point of both hypervolumes is the worst value of each objective over the optimal policies and the
    reference policy.
    """
    best = regularized_rewards(problem, optimum(problem, weightings))
    own = regularized_rewards(problem, log_probs)
    reference = regularized_rewards(problem, problem.ref_log_probs[None])
    nadir = np.concatenate([best, reference]).min(axis=0)
    regret = ((best - own) * weightings).sum(-1)
    ratio = frontier.hypervolume(own, nadir) / frontier.hypervolume(best, nadir)
    return Score(ratio, float(regret.mean()), float(regret.max()))


def mix_sequences(experts: Array, weightings: Array) -> Array:
    """Return `prod_i pi_i(y)^w_i`, normalized over whole responses, [W, P, N], of `experts` [K, P, N].

    Of optimal experts it is the optimum: their tilts add up. No sampler can draw from it token by token.
    """
    return log_softmax(np.einsum("wk,kpn->wpn", weightings, experts), axis=-1)


def mix_tokens(experts: Array, weightings: Array, vocabulary: int) -> Array:
    """Return the policies [W, P, N] that normalize `prod_i pi_i(y_t | y_<t)^w_i` at each token (MOD, arXiv 2406.18853)."""
    parts = [np.einsum("wk,kpvt->wpvt", weightings, each) for each in _conditionals(experts, vocabulary)]
    total = np.zeros((len(weightings), experts.shape[1], 1))
    for part in parts:  # [W, P, prefixes, V]
        total = (total[..., None] + log_softmax(part, axis=-1)).reshape(*total.shape[:2], -1)
    return total


def _conditionals(log_probs: Array, vocabulary: int) -> list[Array]:
    """Return next-token log-probabilities [K, P, V**t, V] for t = 0, 1, ... of whole-response ones [K, P, N]."""
    levels = [log_probs]
    while levels[0].shape[-1] > 1:
        shorter = logsumexp(levels[0].reshape(*log_probs.shape[:2], -1, vocabulary), axis=-1)
        levels.insert(0, shorter)
    return [
        longer.reshape(*log_probs.shape[:2], -1, vocabulary) - shorter[..., None]
        for shorter, longer in itertools.pairwise(levels)
    ]
