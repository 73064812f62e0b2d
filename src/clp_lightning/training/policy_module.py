"""The trainer of a policy: its only state is the experts, its optimizer AdamW with linear decay."""

from typing import Any

import torch

from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.trainer import StepModule

WARMUP_STEPS = 3


class PolicyModule(StepModule):
    """A trainer whose only state is the experts."""

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
