"""KL estimates, advantages and the policy-gradient loss: pure functions of tensors.

Shapes: G groups (one prompt, one weighting), S samples of each, B = G * S rows in group order, T response tokens.
`response_mask` [B, T] is True where a token counts.
"""

from torch import Tensor


def sequence_kl(log_probs: Tensor, ref_log_probs: Tensor, response_mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per response in nats, [B]: the sum over tokens of log-ratios (Schulman's k1).

    Unbiased over the policy's own samples; a single row can be negative.
    """
    return ((log_probs - ref_log_probs) * response_mask).sum(-1)


def regularized_return(scalarized_reward: Tensor, kl: Tensor, alpha: float) -> Tensor:
    """Return `(1 - alpha) * w.R - alpha * KL`, [B]: the objective of CLP for one sample (arXiv 2407.15762)."""
    return (1 - alpha) * scalarized_reward - alpha * kl


def leave_one_out_advantages(returns: Tensor, samples: int) -> Tensor:
    """Subtract from each return [B] the mean of the *other* samples of its group (RLOO, arXiv 2402.14740).

    The baseline does not depend on the sample it is subtracted from, so the gradient stays unbiased. `samples` >= 2.
    """
    grouped = returns.view(-1, samples)
    others = (grouped.sum(-1, keepdim=True) - grouped) / (samples - 1)
    return (grouped - others).reshape(-1)


def normalize_advantages(advantages: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide advantages [B] by their root mean square, which keeps the step size comparable across batches."""
    return advantages / (advantages.square().mean().sqrt() + epsilon)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
    """Return the REINFORCE surrogate `-mean_b(A_b * sum_t log pi(y_t))`, a scalar whose gradient is the policy gradient."""
    return -(advantages.detach()[:, None] * log_probs * response_mask).sum(-1).mean()
