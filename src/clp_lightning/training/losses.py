"""KL estimates, advantages and the policy-gradient loss: pure functions of tensors.

Shapes: G groups (one prompt, one weighting), S samples of each, B = G * S rows in group order, T response tokens.
`response_mask` [B, T] is True where a token counts.
"""

import torch
from torch import Tensor
from torch.nn import functional

LEAST = 1e-3  # added to the weights of a mean, so that there is one where no response is likely


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
