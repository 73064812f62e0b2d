"""How much of a sampled gradient is signal: per expert, beside the exact gradient at the same parameters."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from bench.one_token.bed import OBJECTIVES, OneTokenPolicy
from bench.one_token.methods import EXACT, module, run
from clp_lightning.config.methods import Method
from clp_lightning.config.parameters import Training
from clp_lightning.steering.experts import Experts

STILL = 1e-30  # a learning rate at which nothing moves
TINY = 1e-30  # less is no gradient at all


class Noise(NamedTuple):
    """An expert's gradient, of the objective itself: advantages are not scaled, nothing is clipped."""

    norm: float  # of the exact gradient
    deviation: float  # root of the total variance of a minibatch's gradient
    along: float  # mean of the sampled gradients along the exact one, in units of it; 1 where they are unbiased
    along_error: float  # its standard error
    per_rollout: (
        float | None
    )  # squared norm of the exact one over variance and rollouts of a step; None without variance


class Collect(Callback):
    """Keep what is needed of every step's gradients, before they are clipped."""

    def __init__(self, experts: Experts, exact: list[Tensor] | None = None) -> None:
        self.experts, self.exact = experts, exact
        self.sums: list[Tensor] | None = None
        self.squares: list[list[float]] = []
        self.along: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Add this step's."""
        each = split(self.experts)
        self.sums = each if self.sums is None else [a + b for a, b in zip(self.sums, each, strict=True)]
        self.squares.append([float(g.square().sum()) for g in each])
        if self.exact is not None:
            self.along.append(
                [float(g @ e / e.square().sum().clamp(min=TINY)) for g, e in zip(each, self.exact, strict=True)]
            )


class Halfway(Callback):
    """Stop a training after half of its steps."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop."""
        trainer.should_stop = trainer.global_step >= int(trainer.max_steps) // 2


def split(experts: Experts) -> list[Tensor]:
    """Return the gradient of each low-rank expert, one vector each."""
    parts: list[list[Tensor]] = [[] for _ in range(experts.count)]
    for layer in experts.layers.values():
        a, b = (parameter.grad for parameter in layer.own())
        assert a is not None and b is not None
        for part, rows, columns in zip(parts, a.chunk(experts.count, 0), b.chunk(experts.count, 1), strict=True):
            part += [rows.flatten(), columns.flatten()]
    return [torch.cat(part) for part in parts]


def gradients(
    policy: OneTokenPolicy, method: Method, training: Training, kind: str, steps: int, **options: Any
) -> Collect:
    """Return what `steps` steps' gradients are where the policy stands."""
    assert policy.experts is not None
    still = {"learning_rate": STILL, "steps": steps, "advantages": "none", "gradient_clip": 1e9}
    collected = Collect(policy.experts, **options)
    run(module(policy, method, training.model_copy(update=still), kind), [collected])
    return collected


def measure(policy: OneTokenPolicy, method: Method, training: Training, kind: str, draws: int) -> dict[str, Noise]:
    """Return the noise of every expert's gradient over `draws` minibatches, by objective."""
    exact = gradients(policy, method, training, EXACT, 1).sums
    assert exact is not None
    drawn = gradients(policy, method, training, kind, draws, exact=exact)
    assert drawn.sums is not None
    rollouts = training.prompts_per_step * training.samples_per_prompt
    along, squares = torch.tensor(drawn.along), torch.tensor(drawn.squares)
    result = {}
    for i, name in enumerate(OBJECTIVES):
        square = float(exact[i].square().sum())
        variance = float(squares[:, i].mean() - (drawn.sums[i] / draws).square().sum()) * draws / (draws - 1)
        mean, error = float(along[:, i].mean()), float(along[:, i].std() / draws**0.5)
        per_rollout = square / variance / rollouts if variance > TINY else None
        result[name] = Noise(square**0.5, max(variance, 0.0) ** 0.5, mean, error, per_rollout)
    return result
