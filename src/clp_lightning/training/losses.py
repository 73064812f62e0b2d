"""KL estimates, advantages, and the losses of returns and of pairs: pure functions of tensors.

Shapes: G groups (one prompt, one weighting), S samples of each, B = G * S rows in group order, T response tokens.
`response_mask` [B, T] is True where a token counts.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-3  # added to the weights of a mean, so that there is one where no response is likely
EPSILON = 1e-4  # added to standard deviations that are divided by, as TRL does


def sequence_kl(log_probs: Tensor, ref_log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per response in nats, [B]: the sum over tokens of log-ratios (Schulman's k1).

    Unbiased over the policy's own samples; a single row can be negative.
    """
    return ((log_probs - ref_log_probs) * response_mask).sum(-1)


def token_kl(logits: Tensor, ref_logits: Tensor, response_mask: Tensor) -> Tensor:
    """Return KL(policy || reference) at every token's state in nats, [B, T], differentiable; 0 where `response_mask` is False.

    Logits are [P * N, V], of the positions that count; the reference policy's are [N, V] where the same responses were scored
    under P policies. Summed over a response this has the expectation of `sequence_kl` and less variance: a Rao-Blackwell
    estimate (arXiv 2504.10637).
    """
    log_q = ref_logits.log_softmax(-1)
    log_p = logits.log_softmax(-1).unflatten(0, (-1, len(log_q)))
    result = log_p.new_zeros(response_mask.shape)
    each = functional.kl_div(log_q.expand_as(log_p), log_p, log_target=True, reduction="none")
    result[response_mask] = each.sum(-1).flatten()
    return result


def kl_penalty(log_probs: Tensor, ref_log_probs: Tensor, response_mask: Tensor, alpha: Tensor) -> Tensor:
    """Return `mean_b(alpha_b * sum_t (log-ratio)^2 / 2)` (Schulman's k2), a loss term; `alpha` is [B] or a scalar.

    Its gradient is that of the per-token reverse KL at the states that were visited; the effect of a token on later
    states' KL is left out, which `regularized_return` includes.
    """
    return (alpha * (0.5 * (log_probs - ref_log_probs).square() * response_mask).sum(-1)).mean()


def regularized_return(scalarized_reward: Tensor, kl: Tensor, alpha: Tensor | float) -> Tensor:
    """Return `(1 - alpha) * w.R - alpha * KL`, [B]: the objective of CLP for one sample (arXiv 2407.15762).

    `alpha` is one KL strength, or one per row [B].
    """
    return (1 - alpha) * scalarized_reward - alpha * kl


def leave_one_out_advantages(returns: Tensor, samples: int, ratios: Tensor | None = None, policies: int = 1) -> Tensor:
    """Subtract from each return [B] the mean of the *other* samples of its group (RLOO, arXiv 2402.14740).

    The baseline does not depend on the sample it is subtracted from, so the gradient stays unbiased. Importance weights
    `ratios` [B] make it a weighted mean, near the mean under the policy that they are weights for. Where several `policies`
    gave a group's samples, n in a row each, one sample of every policy is left out together: the mean of the others then has
    one expectation whichever policy gave the sample, without which the weighted gradients of the policies' samples would not
    cancel. `samples` / `policies` = n >= 2.
    """
    grouped = returns.view(-1, policies, samples // policies)
    weights = torch.ones_like(grouped) if ratios is None else (ratios + LEAST).view_as(grouped)
    weighted = weights * grouped
    value, weight = (each.sum((1, 2), keepdim=True) - each.sum(1, keepdim=True) for each in (weighted, weights))
    return (grouped - value / weight).reshape(-1)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Return the REINFORCE surrogate `-mean_b(A_b * sum_t log pi(y_t))`, a scalar whose gradient is the policy gradient."""
    return -(advantages.detach()[:, None] * log_probs * response_mask).sum(-1).mean()


def balanced_ratios(log_probs: Tensor, response_mask: Tensor, policies: int) -> Tensor:
    """Return `pi_p(y) / mean_q pi_q(y)` of B responses, of which each of P policies q gave an equal share, [P * B].

    `log_probs` are [P * B, T]. A mean over the responses with these importance weights, which have no gradient, is one over
    policy p's (balance heuristic, Veach and Guibas 1995). They lie between 0 and P, and those of a single policy are 1.
    """
    of_responses = (log_probs * response_mask).sum(-1).view(policies, -1)
    return policies * of_responses.softmax(0).flatten().detach()


def group_z_scores(rewards: Tensor, samples: int) -> Tensor:
    """Return each reward less its group's mean over its group's deviation, [B, K]; NaN where the reward [B, K] is NaN.

    The first half of GDPO (arXiv 2601.05242): deviations are of samples (S - 1), NaN counts in neither.
    """
    grouped = rewards.view(-1, samples, rewards.shape[1])
    return ((grouped - grouped.nanmean(1, keepdim=True)) / (_deviation(grouped, 1) + EPSILON)).view_as(rewards)


def weighted_sum(scores: Tensor, weightings: Tensor) -> Tensor:
    """Return `sum_i w_i Z_i` [B] of the objectives that have a score [B, K]; NaN where none has (GDPO, arXiv 2601.05242)."""
    none = scores.isnan().all(-1)
    return (weightings * scores).nansum(-1).masked_fill(none, torch.nan)


def soft_minimum(scores: Tensor, weightings: Tensor, sharpness: float) -> Tensor:
    """Return `-(1/k) log sum_i w_i exp(-k Z_i)` [B] of scores [B, K]: w.Z for small k > 0, the least Z_i with w_i > 0 for large.

    RVPO (arXiv 2605.05750) where all w_i are equal; with others its mean is weighted, so that the policy can be steered.
    """
    return -(weightings.log() - sharpness * scores).logsumexp(-1) / sharpness


def whitened(scores: Tensor, everyone: Tensor) -> Tensor:
    """Return scores [B] less the mean of `everyone` over its deviation; 0 for NaN. The second half of GDPO (arXiv 2601.05242).

    `everyone` are the scores of all processes, [B * processes]; with one process the same.
    """
    return ((scores - everyone.nanmean()) / (_deviation(everyone, 0) + EPSILON)).nan_to_num(0.0)


def _deviation(values: Tensor, dim: int) -> Tensor:
    """Return standard deviations of samples along `dim`, which is kept; NaN counts nowhere."""
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim, keepdim=True)
    return (squares / ((~values.isnan()).sum(dim, keepdim=True) - 1)).sqrt()


def cvar_utilities(returns: Tensor, samples: int, tau: float, ratios: Tensor | None = None) -> Tensor:
    """Return `b - max(b - R, 0) / tau` of returns [B], whose mean over a group is its CVaR: the mean of the worst tau share.

    The optimized certainty equivalent `max_b b + E u(R - b)` with `u(t) = -max(-t, 0) / tau`, tau in (0, 1] (arXiv 2403.06323).
    b is fitted on each group's own S responses (one prompt, one weighting), of which the best b is the tau-quantile; with
    importance weights `ratios` [B] the weighted one. tau = 1 returns R. A b from the responses that it is used on makes the
    gradient biased for few of them.
    """
    grouped = returns.view(-1, samples)
    weights = torch.ones_like(grouped) if ratios is None else ratios.to(returns).view_as(grouped)
    ordered, order = grouped.sort(1)
    share = weights.gather(1, order).cumsum(1) / weights.sum(1, keepdim=True)
    place = (share < tau).sum(1, keepdim=True).clamp(max=samples - 1)  # the first by which the share is reached
    b = ordered.gather(1, place)
    return (b - (b - grouped).clamp(min=0) / tau).reshape(-1)


def pair_loss(log_ratios: Tensor, scalarized_reward: Tensor, samples: int, beta: float) -> Tensor:
    """Return `mean_g -log sigmoid(beta (dlr(y+) - dlr(y-)))` for each group's best y+ and worst y- by `scalarized_reward`.

    `log_ratios` [B] are dlr(y) = log pi(y) - log pi_ref(y), differentiable; S >= 2. A group whose rewards are all equal has
    weight 0 and counts in the mean; of several best, or worst, the first is taken. Online DPO (arXiv 2402.04792) at each
    weighting is MO-ODPO (arXiv 2503.00295).

    For preferences drawn with probability sigmoid(w.R(y+) - w.R(y-)), beta = alpha / (1 - alpha) would have the optimum of
    (1 - alpha) w.R - alpha KL. Here the better response always wins, however little better it is, so there is no such
    optimum: beta says at which margin, some 1 / beta nats, a pair teaches little more.
    """
    grouped, ratios = scalarized_reward.view(-1, samples), log_ratios.view(-1, samples)
    best, worst = grouped.argmax(1, keepdim=True), grouped.argmin(1, keepdim=True)
    margins = ratios.gather(1, best) - ratios.gather(1, worst)
    decided = grouped.gather(1, best) > grouped.gather(1, worst)
    return -(functional.logsigmoid(beta * margins) * decided).mean()


def other_weighting_loss(log_ratios: Tensor, elsewhere: Tensor, beta: float) -> Tensor:
    """Return `mean_b -log sigmoid(beta (dlr(y|w+) - dlr(y|w-)))`, [] : a response is likelier at the w+ that it was drawn at.

    `log_ratios` [B] are at w+, `elsewhere` [B] those of the same responses at another weighting w-; both are differentiable.
    MI-EPO's second term (arXiv 2607.01392). Where w- is w+ it is log 2, without a gradient.
    """
    return -functional.logsigmoid(beta * (log_ratios - elsewhere)).mean()
