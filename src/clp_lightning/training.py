"""Supervised finetuning and CLP finetuning as Lightning modules; `ClpModule.training_step` is the algorithm.

One trainer serves every method: CLP draws weightings from a Dirichlet distribution, rewarded soups draws one-hot ones.
All randomness of a step derives from (seed, step), so a run that was interrupted equals one that was not.
"""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from clp_lightning import weightings as simplex
from clp_lightning.checkpoints import SafeCheckpointIO, last_checkpoint
from clp_lightning.config import Dirichlet, Sft, Training, Vertices
from clp_lightning.losses import (
    leave_one_out_advantages,
    normalize_advantages,
    policy_gradient_loss,
    regularized_return,
    sequence_kl,
)
from clp_lightning.policy import SteerablePolicy
from clp_lightning.progress import progress_bar, quiet

RewardFunction = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # documents, responses -> normalized [B, K]
WARMUP_STEPS = 3


def draw_weightings(
    distribution: Dirichlet | Vertices, rng: np.random.Generator, count: int, objectives: int
) -> np.ndarray:
    """Draw [count, K] weightings from a method's Q."""
    if isinstance(distribution, Dirichlet):
        return simplex.dirichlet(rng, count, objectives, concentration=distribution.concentration)
    return simplex.vertices(rng, count, objectives)


class StepModule(LightningModule):
    """What every trainer of the pipeline shares: steps known by their number, and a curve that survives a resume."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.curve: list[dict[str, float]] = []

    def train_dataloader(self) -> DataLoader:
        """One item per step; what a step reads follows from its number alone, also after a resume."""
        return DataLoader(range(self.steps), batch_size=None)  # type: ignore[arg-type]

    def linear_decay(self, optimizer: torch.optim.Optimizer, warmup: int) -> dict[str, Any]:
        """Pair an optimizer with a schedule: linear warm-up over `warmup` steps, then linear decay to 0."""
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, 1.0) * max(1 - step / self.steps, 0.0)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def record(self, **values: float) -> None:
        """Keep one row of the training curve and show it on the progress bar."""
        self.curve.append({"step": self.global_step, **values})
        self.log_dict(dict(values), prog_bar=True, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The curve travels with the checkpoint, so that a resumed run has all of it."""
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the curve where the checkpoint left it."""
        self.curve = [dict(row) for row in checkpoint["curve"]]


class PolicyModule(StepModule):
    """A trainer whose only state is the experts."""

    policy: SteerablePolicy

    def __init__(self, policy: SteerablePolicy, *, learning_rate: float, steps: int) -> None:
        super().__init__(steps)
        assert policy.experts is not None
        self.experts = policy.experts.parameters_by_name  # registers the parameters to train, and nothing else
        self.__dict__["policy"] = policy  # the frozen model is no part of a checkpoint
        self.learning_rate = learning_rate

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay (it would pull the experts towards the reference)."""
        optimizer = torch.optim.AdamW(self.experts.values(), lr=self.learning_rate, weight_decay=0.0)
        return self.linear_decay(optimizer, WARMUP_STEPS)


class SftModule(PolicyModule):
    """Maximizes the likelihood of the reference summaries with one expert whose coefficient is always 1."""

    def __init__(
        self, policy: SteerablePolicy, config: Sft, documents: Sequence[str], summaries: Sequence[str], seed: int
    ):
        super().__init__(policy, learning_rate=config.learning_rate, steps=config.steps)
        self.documents, self.summaries, self.seed, self.batch_size = documents, summaries, seed, config.batch_size

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood per token, in nats."""
        rows = np.random.default_rng([self.seed, self.global_step]).choice(len(self.documents), self.batch_size)
        prompts = self.policy.tokenize([self.documents[row] for row in rows])
        ids, mask = self.policy.tokenize_responses(
            [self.summaries[row] for row in rows], self.policy.generation.max_new_tokens
        )
        log_probs = self.policy.score(prompts, ids, mask, torch.ones(len(rows), 1, device=ids.device))
        loss = -log_probs.sum() / mask.sum()
        self.record(loss=loss.item())
        return loss


class ClpModule(PolicyModule):
    """CLP: one policy for every weighting (arXiv 2407.15762), by REINFORCE with a leave-one-out baseline.

    `rewards(documents, responses)` returns normalized rewards [B, K].
    """

    def __init__(
        self,
        policy: SteerablePolicy,
        config: Training,
        distribution: Dirichlet | Vertices,
        documents: Sequence[str],
        rewards: RewardFunction,
        seed: int,
    ) -> None:
        super().__init__(policy, learning_rate=config.learning_rate, steps=config.steps)
        self.config, self.distribution, self.documents = config, distribution, documents
        self.rewards, self.seed, self.generated_tokens = rewards, seed, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One on-policy gradient step; the lines follow the algorithm."""
        samples, alpha, started = self.config.samples_per_prompt, self.config.alpha, time.monotonic()
        rng = np.random.default_rng([self.seed, self.global_step])
        generator = torch.Generator(device=self.device).manual_seed(int(rng.integers(2**62)))

        # x ~ D, w ~ Q: one prompt and one weighting per group
        chosen = rng.choice(len(self.documents), self.config.prompts_per_step, replace=False)
        documents = [self.documents[row] for row in chosen]
        weightings = draw_weightings(self.distribution, rng, len(documents), len(self.policy.objectives))
        prompts, coefficients = self.policy.tokenize(documents), self.policy.coefficients(weightings, len(documents))

        # y ~ pi_w(. | x): several samples share the prompt's forward
        responses = self.policy.rollout(prompts, coefficients, samples=samples, generator=generator)
        ids, mask = responses.ids, responses.mask

        # w . R(x, y)
        rewards = self.rewards(np.repeat(documents, samples).tolist(), self.policy.decode(ids))
        scalarized = torch.as_tensor((np.repeat(weightings, samples, axis=0) * rewards).sum(-1)).to(ids.device)

        # log pi_w and log pi_ref; a row without coefficients is the reference
        log_probs = self.policy.score(prompts, ids, mask, coefficients, samples=samples)
        with torch.no_grad():
            ref_log_probs = self.policy.score(prompts, ids, mask, None, samples=samples)

        # (1 - alpha) w . R - alpha KL, against the group's other samples
        kl = sequence_kl(log_probs.detach(), ref_log_probs, mask)
        returns = regularized_return(scalarized, kl, alpha)
        advantages = normalize_advantages(leave_one_out_advantages(returns, samples)).float()
        loss = policy_gradient_loss(log_probs, advantages, mask)

        self.generated_tokens += int(mask.sum())
        named = {f"reward_{name}": float(rewards[:, k].mean()) for k, name in enumerate(self.policy.objectives)}
        self.record(
            loss=loss.item(),
            scalarized_reward=float(scalarized.mean()),
            kl=float(kl.mean()),
            length=float(mask.sum(-1).float().mean()),
            **named,
            seconds=time.monotonic() - started,
        )
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Costs are counted over all sessions of a run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["generated_tokens"] = self.generated_tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the counts."""
        super().on_load_checkpoint(checkpoint)
        self.generated_tokens = checkpoint["generated_tokens"]


def fit(module: StepModule, *, checkpoints: Path, every: int, gradient_clip: float = 1.0) -> None:
    """Train to `module.steps` with Lightning, from the last checkpoint in `checkpoints` when there is one."""
    quiet()
    trainer = Trainer(
        max_steps=module.steps,
        accelerator="auto",
        devices=1,
        logger=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[
            ModelCheckpoint(
                dirpath=checkpoints,
                filename="last",
                every_n_train_steps=every,
                save_top_k=1,
                enable_version_counter=False,
            ),
            progress_bar(),
        ],
        enable_model_summary=False,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=1,
    )
    last = last_checkpoint(checkpoints)
    trainer.fit(module, ckpt_path=str(last) if last else None)


def write_curve(rows: list[dict[str, float]], path: Path) -> None:
    """Write a training curve as CSV: `step`, then every recorded value."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
