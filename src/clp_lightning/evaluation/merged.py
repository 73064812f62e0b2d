"""Merging operators for experts that were trained apart: TIES and DARE, as PEFT defines them.

Linear averaging needs none of this: it is what every policy does row by row. These two are not linear in the weighting, so
one weighting at a time is merged into the model itself.
"""

import contextlib
from typing import Any

from torch import Tensor

from clp_lightning.config.derived import Merged
from clp_lightning.errors import UsageError
from clp_lightning.policy.rollout import Prompts, Responses, Scores
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.merging import merged


class MergedPolicy(SteerablePolicy):
    """A policy whose experts are merged by an operator instead of averaged; one weighting per call of `rollout`."""

    operator: Merged
    seed: int = 0

    def rollout(self, prompts: Prompts, coefficients: Tensor | None, **settings: Any) -> Responses:
        """Sample as `SteerablePolicy.rollout` does, from the model into which the one row of coefficients is merged."""
        with self._merged(coefficients):
            return super().rollout(prompts, None, **settings)

    def score_fully(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Scores:
        """Score as `SteerablePolicy.score_fully` does, under the merged model."""
        with self._merged(coefficients):
            return super().score_fully(prompts, ids, mask, None, samples=samples)

    def _merged(self, coefficients: Tensor | None) -> contextlib.AbstractContextManager[None]:
        if coefficients is None or self.experts is None:
            return contextlib.nullcontext()
        if not bool((coefficients == coefficients[0]).all()):
            raise UsageError("weighting: a merged policy takes one at a time; call it once for each weighting")
        self.experts.dequantize(self.model)
        return merged(self.experts, coefficients[0], self.operator, self.seed)
