"""Baselines of REINFORCE (variance reduction only): what is subtracted from a response's return to give its advantage.

None depends on the response it is subtracted from, so the gradient stays unbiased. Shapes: G groups (one prompt, one
weighting), S samples of each, B = G * S rows in group order, K coefficients, H hidden units.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clp_lightning.training.losses import leave_one_out_advantages


class Group(NamedTuple):
    """What a baseline may look at: never the responses."""

    coefficients: Tensor  # [G, K], (1 - alpha) w
    states: Tensor  # [G, H], the frozen reference policy's last hidden state of the prompt
    ratios: Tensor | None = None  # [B], importance weights of responses; None: all are of the group's own policy
    policies: int = 1  # that gave a group's responses, as many each


class LeaveOneOut(nn.Module):
    """The mean return of the group's other samples (RLOO, arXiv 2402.14740); it learns nothing."""

    def forward(self, returns: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Return advantages [B] and a loss of 0 for `returns` [B]."""
        samples = len(returns) // len(group.states)
        return leave_one_out_advantages(returns, samples, group.ratios, group.policies), returns.new_zeros(())


class WeightingRegression(nn.Module):
    """Ridge regression of the return on the weighting, over earlier steps with exponential forgetting.

    Features are the coefficients and their products, so quadratic in w: the value of the optimal policy is convex in w.
    """

    gram: Tensor
    moment: Tensor

    def __init__(self, coefficients: int, *, forgetting: float = 0.95, ridge: float = 1e-2) -> None:
        super().__init__()
        self.forgetting, self.ridge = forgetting, ridge
        size = 1 + coefficients + coefficients * (coefficients + 1) // 2
        self.register_buffer("gram", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, returns: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Return advantages [B] against the fit to *earlier* steps, then take `returns` [B] in; the loss is 0."""
        c = group.coefficients.double()
        upper = torch.triu_indices(c.shape[1], c.shape[1])
        features = torch.cat([torch.ones_like(c[:, :1]), c, c[:, upper[0]] * c[:, upper[1]]], dim=1)
        identity = self.ridge * torch.eye(len(self.gram), dtype=torch.float64, device=c.device)
        fitted = features @ torch.linalg.solve(self.gram + identity, self.moment)  # [G]
        samples = len(returns) // len(c)
        self.gram.mul_(self.forgetting).add_(samples * features.T @ features)
        self.moment.mul_(self.forgetting).add_(features.T @ returns.double().view(-1, samples).sum(1))
        return returns - fitted.repeat_interleave(samples).to(returns), returns.new_zeros(())


class LearnedValue(nn.Module):
    """A linear value of prompt and weighting, trained by least squares beside the policy."""

    def __init__(self, hidden: int, coefficients: int) -> None:
        super().__init__()
        self.value = nn.Linear(hidden + coefficients, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, returns: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Return advantages [B] and the mean squared error of the value, a scalar to minimize."""
        states = functional.normalize(group.states.float(), dim=-1)
        value = self.value(torch.cat([states, group.coefficients.float()], dim=1))[:, 0]
        value = value.repeat_interleave(len(returns) // len(value))
        target = returns.float()
        return (target - value).detach().to(returns), functional.mse_loss(value, target)


def build_baseline(kind: str, *, hidden: int, coefficients: int) -> nn.Module:
    """Return the baseline that `training.baseline` names."""
    if kind == "leave_one_out":
        return LeaveOneOut()
    return WeightingRegression(coefficients) if kind == "regression" else LearnedValue(hidden, coefficients)
