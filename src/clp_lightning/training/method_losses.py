"""What a step minimizes: the kinds of `methods.NAME.loss`, each a module from a step's `Batch` to a scalar.

Shapes as in `training.losses`; K objectives, C coefficients, H hidden units.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from clp_lightning.config.training import CustomLoss, Loss, MiEpo, OnlineDpo, Training
from clp_lightning.errors import ClpError, one_line
from clp_lightning.rewards.calls import import_function
from clp_lightning.training.baselines import Group, build_baseline
from clp_lightning.training.losses import (
    cvar_utilities,
    group_z_scores,
    kl_penalty,
    leave_one_out_advantages,
    other_weighting_loss,
    pair_loss,
    policy_gradient_loss,
    regularized_return,
    sequence_kl,
    soft_minimum,
    weighted_sum,
    whitened,
)


class Batch(NamedTuple):
    """What a loss may read of a step: B responses, S to each of G groups (one prompt, one weighting), in group order.

    The responses are the policy's own, unless the method relabels: then `group.ratios` are their importance weights.
    """

    rewards: Tensor  # float64 [B, K], normalized
    weightings: Tensor  # float64 [B, K], what scalarizes the rewards
    alphas: Tensor  # float64 [B], KL strengths
    log_probs: Tensor  # float32 [B, T], the policy's at its weighting, differentiable
    ref_log_probs: Tensor  # float32 [B, T], the reference policy's
    mask: Tensor  # bool [B, T], True where a token counts
    kl: Tensor  # [B], estimates of KL(policy || reference); differentiable if `training.kl` is exact
    group: Group
    ratios: Tensor  # [B], importance weights, 1 where the method does not relabel
    log_probs_elsewhere: Callable[
        [], Tensor
    ]  # computes `log_probs` of the same responses at other weightings drawn from Q
    strategy: Strategy  # reduces over the processes of a training; gradients are averaged over them anyway

    @property
    def samples(self) -> int:
        """S, the responses of a group."""
        return len(self.rewards) // len(self.group.states)

    @property
    def scalarized(self) -> Tensor:
        """w.R of each response, [B]."""
        return (self.weightings * self.rewards).sum(-1)

    @property
    def log_ratios(self) -> Tensor:
        """log pi - log pi_ref of each response, [B], differentiable."""
        return sequence_kl(self.log_probs, self.ref_log_probs, self.mask)


class ReinforceLoss(nn.Module):
    """REINFORCE on (1 - alpha) w.R - alpha KL with a baseline: CLP's own loss, and what a method without `loss` has."""

    def __init__(self, config: Training, *, hidden: int, coefficients: int) -> None:
        super().__init__()
        self.config = config
        self.baseline = build_baseline(config.baseline, hidden=hidden, coefficients=coefficients)

    def forward(self, batch: Batch) -> Tensor:
        """Return the surrogate whose gradient is that of the negative objective, with the baseline's own loss."""
        advantages, baseline_loss = self._advantages(batch)
        advantages = batch.ratios * advantages
        scale = self._scale(advantages, batch.strategy)
        loss = policy_gradient_loss(batch.log_probs, (advantages / scale).float(), batch.mask) + baseline_loss
        if self.config.kl == "loss":
            strength = batch.ratios * batch.alphas / scale
            loss = loss + kl_penalty(batch.log_probs, batch.ref_log_probs, batch.mask, strength)
        elif self.config.kl == "exact":  # the advantages hold what a token does to later states' KL
            loss = loss + (batch.ratios * batch.alphas / scale * batch.kl).mean()
        return loss

    def _advantages(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return advantages [B] of the regularized return and the baseline's own loss.

        Whatever becomes of w.R, the KL strength enters as in the objective: (1 - alpha) times that, less alpha times the KL.
        """
        group, config = batch.group, self.config
        penalty = torch.zeros_like(batch.kl) if config.kl == "loss" else batch.kl.detach()
        centered = partial(
            leave_one_out_advantages, samples=batch.samples, ratios=group.ratios, policies=group.policies
        )
        match config.advantages:
            case "objective":  # each objective's advantages at the same scale, then weighted
                each = torch.stack([centered(column) for column in batch.rewards.T], dim=1)
                scalarized = (batch.weightings * each / self._scale(each, batch.strategy)).sum(-1)
            case "gdpo" | "rvpo":
                scores = group_z_scores(batch.rewards, batch.samples)
                if config.advantages == "gdpo":
                    scores = weighted_sum(scores, batch.weightings)
                else:
                    scores = soft_minimum(scores, batch.weightings, config.rvpo_sharpness or 1.0)
                scalarized = whitened(scores, batch.strategy.all_gather(scores).flatten())
            case _:
                scalarized = batch.scalarized
                if config.risk is not None:
                    scalarized = cvar_utilities(scalarized, batch.samples, config.risk.tau, group.ratios)
                returns = regularized_return(scalarized, penalty, batch.alphas)
                return self.baseline(returns, group)
        return regularized_return(scalarized, centered(penalty), batch.alphas), batch.kl.new_zeros(())

    def _scale(self, advantages: Tensor, strategy: Strategy) -> Tensor:
        """Root mean square over the rows of all processes; 1 if advantages have their scale, or 0 but for rounding."""
        if self.config.advantages in ("none", "gdpo", "rvpo"):
            return advantages.new_ones(())
        square = advantages.square().mean(0)
        root = strategy.reduce(square, reduce_op="mean").sqrt()
        return torch.where(
            root < 1e-6, torch.ones_like(root), root
        )  # rounding errors blown up would be steps at random


class PairLoss(nn.Module):
    """MO-ODPO (arXiv 2503.00295), and MI-EPO (arXiv 2607.01392) with its second term."""

    def __init__(self, settings: OnlineDpo | MiEpo) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss over the groups' pairs, and over the responses for MI-EPO's term."""
        loss = pair_loss(batch.log_ratios, batch.scalarized, batch.samples, self.settings.beta)
        if isinstance(self.settings, MiEpo):
            elsewhere = sequence_kl(batch.log_probs_elsewhere(), batch.ref_log_probs, batch.mask)
            loss = loss + other_weighting_loss(batch.log_ratios, elsewhere, self.settings.beta_w)
        return loss


class UserLoss(nn.Module):
    """A user's own function of a `Batch`; raises `ClpError` for a module or function that is not there."""

    def __init__(self, settings: CustomLoss, root: Path) -> None:
        super().__init__()
        self.name = settings.function
        self.function = self._named(import_function, settings.function, root)

    def forward(self, batch: Batch) -> Tensor:
        """Call the function; raises `ClpError` when it fails, or returns anything but one finite number with a gradient."""
        loss = self._named(self.function, batch)
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        if shape != ():
            wrong = f"returned {f'shape {shape}' if isinstance(shape, tuple) else shape}; return one number, a tensor of shape ()"
        elif not loss.isfinite():
            wrong = f"returned {loss.item()}; return a finite number"
        elif not loss.requires_grad:
            wrong = "returned a number without a gradient; compute it from batch.log_probs"
        else:
            return loss
        raise ClpError(f"loss {self.name} {wrong}")

    def _named(self, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except ClpError as error:
            raise type(error)(f"loss {self.name}: {error}") from error
        except Exception as error:
            problem = f"{type(error).__name__}: {one_line(error)}"
            raise ClpError(f"loss {self.name} failed: {problem}; mend the function, or name another") from error


def build_loss(loss: Loss | None, root: Path) -> nn.Module | None:
    """Return the module of a method's `loss`, or None for REINFORCE; functions are those of the project at `root`."""
    match loss:
        case None:
            return None
        case CustomLoss():
            return UserLoss(loss, root)
        case _:
            return PairLoss(loss)
