"""What every training of a policy shares, and supervised finetuning, which gives the reference policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clp_lightning.config.parameters import Sft
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.trainer import StepModule

WARMUP_STEPS = 3


class PolicyModule(StepModule):
    """The trainer of a policy: its only state is the experts, its optimizer AdamW with linear decay."""

    policy: SteerablePolicy

    def __init__(self, policy: SteerablePolicy, *, learning_rate: float, steps: int, accumulate: int = 1) -> None:
        super().__init__(steps, accumulate=accumulate)
        assert policy.experts is not None
        self.experts = policy.experts.parameters_by_name  # registers the parameters to train, and nothing else
        self.__dict__["policy"] = policy  # the frozen model is no part of a checkpoint
        self.learning_rate = learning_rate

    @property
    def home(self) -> torch.device:
        """Where the frozen base lies: Lightning may have left the experts elsewhere."""
        return self.policy.model.device

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay (it would pull the experts towards the reference)."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.0)
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
