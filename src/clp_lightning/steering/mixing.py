"""Decoding from several policies at once: which ones, and the share of each, as a function of a row's coefficients.

The next token is drawn from the normalized product `prod_m pi_m^(share_m)`: a forward per policy and token, and no training.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clp_lightning.errors import UsageError

# coefficients [G, K] -> the policies' coefficients [M, G, K], and their shares [M, G]
Mixture = Callable[[Tensor], tuple[Tensor, Tensor]]


def experts(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the K experts, each alone, with the row's coefficients (logit mixing: MOD, arXiv 2406.18853).

    What coefficients `(1 - alpha) w` lack to 1 is the reference policy's share, so that alpha = 1 is the reference.
    """
    rows, count = coefficients.shape
    alone = torch.eye(count, dtype=coefficients.dtype, device=coefficients.device)
    members, shares = alone[:, None].expand(-1, rows, -1), coefficients.T
    rest = 1 - coefficients.sum(1)
    if bool((rest > 1e-6).any()):  # else a forward per token for nothing
        members = torch.cat([members, torch.zeros_like(members[:1])])
        shares = torch.cat([shares, rest[None].clamp(min=0)])
    return members, shares


def reference(strength: float) -> Mixture:
    """Mix the policy with its reference: share `strength` (0..1) of the latter (DeRa, arXiv 2402.02992).

    0 is the policy and 1 the reference, exactly. Raises `UsageError` outside of 0..1.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength: {strength} must be in 0..1; 0 is the policy, 1 its reference")

    def mixture(coefficients: Tensor) -> tuple[Tensor, Tensor]:
        shares = coefficients.new_tensor([1 - strength, strength])[:, None].expand(-1, len(coefficients))
        return torch.stack([coefficients, torch.zeros_like(coefficients)]), shares

    return mixture


def bone_soups(mixtures: np.ndarray, extrapolation: float) -> Mixture:
    """Steer experts that were trained on `mixtures` M [K, K] of the rewards (Bone Soups, arXiv 2502.10762).

    Coefficients c solve `M' c = w`, so that the experts' mixtures add up to w, and are divided by `1 - extrapolation`. As
    M's rows sum to 1, so does c before; single ones may be negative. Raises `UsageError` for an extrapolation outside of [0, 1).
    """
    if not 0 <= extrapolation < 1:
        raise UsageError(
            f"extrapolation: {extrapolation} must be >= 0 and < 1; 0 leaves the experts' combination as it is"
        )
    solution = torch.as_tensor(np.linalg.inv(mixtures) / (1 - extrapolation))  # a row: c' = w' M^-1
    return _linear(lambda coefficients: coefficients @ solution.to(coefficients))


def scaled(factor: float) -> Mixture:
    """Steer by `factor` times the coefficients: the update is extrapolated, or drawn back towards the reference (0).

    Raises `UsageError` for a factor that is negative or not finite.
    """
    if not 0 <= factor < float("inf"):
        raise UsageError(f"factor: {factor} must be a number >= 0; 1 is the policy as it was trained")
    return _linear(lambda coefficients: factor * coefficients)


def _linear(change: Callable[[Tensor], Tensor]) -> Mixture:
    """Return the mixture that is one policy, at other coefficients [G, K] than it is asked for."""

    def mixture(coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return change(coefficients)[None], torch.ones_like(coefficients[None, :, 0])

    return mixture
