"""Merging operators for experts that were trained apart: TIES and DARE, as PEFT defines them.

Linear averaging needs none of this: it is what every policy does row by row. These two are not linear in the weighting, so
one weighting at a time is merged into the model itself.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor, nn

from clp_lightning.config_methods import Merged
from clp_lightning.errors import UsageError
from clp_lightning.experts import Experts
from clp_lightning.policy import SteerablePolicy
from clp_lightning.rollout import Prompts, Responses


class MergedPolicy(SteerablePolicy):
    """A policy whose experts are merged by an operator instead of averaged; one weighting per call of `rollout`."""

    operator: Merged
    seed: int = 0

    def rollout(self, prompts: Prompts, coefficients: Tensor | None, **settings: Any) -> Responses:
        """Sample as `SteerablePolicy.rollout` does, from the model into which the one row of coefficients is merged."""
        with self._merged(coefficients):
            return super().rollout(prompts, None, **settings)

    def score_and_states(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Score as `SteerablePolicy.score_and_states` does, under the merged model."""
        with self._merged(coefficients):
            return super().score_and_states(prompts, ids, mask, None, samples=samples)

    def _merged(self, coefficients: Tensor | None) -> contextlib.AbstractContextManager[None]:
        if coefficients is None or self.experts is None:
            return contextlib.nullcontext()
        if not bool((coefficients == coefficients[0]).all()):
            raise UsageError("weighting: a merged policy takes one at a time; call it once for each weighting")
        self.experts.dequantize(self.model)
        return merged(self.experts, coefficients[0], self.operator, self.seed)


@contextlib.contextmanager
def merged(experts: Experts, coefficients: Tensor, operator: Merged, seed: int) -> Iterator[None]:
    """Run a block with the experts' updates merged into the base layers by coefficients [K]; the layers are restored."""
    before = {name: layer.base.weight for name, layer in experts.layers.items()}
    try:
        for number, layer in enumerate(experts.layers.values()):
            alone = torch.eye(len(coefficients), device=coefficients.device)
            updates = [layer.update(row, experts.scaling) for row in alone]
            change = merge(updates, coefficients, operator, seed=seed + number)
            layer.base.weight = nn.Parameter((layer.base.weight.float() + change).to(layer.base.weight.dtype), False)
        yield
    finally:
        for name, layer in experts.layers.items():
            layer.base.weight = before[name]


def merge(updates: list[Tensor], coefficients: Tensor, operator: Merged, *, seed: int) -> Tensor:
    """Merge updates, each [out, in], with coefficients [K]; DARE drops entries at random, the same for one seed."""
    if operator.operator == "ties":
        return ties(updates, coefficients, operator.density)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dare_linear(updates, coefficients, operator.density)
