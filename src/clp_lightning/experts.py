"""Per-objective experts on linear layers, averaged per row: `theta(w) = theta_rest + sum_i w_i theta_S^(i)`.

A linear layer is linear in its parameters, so averaging M low-rank experts per row is exact without a copy of the
parameters per weighting: with the A's stacked to [M*r, in] and the B's to [out, M*r],

    y = W x + B (c * (A x)),    c = coefficients of the row, each repeated r times.

Two matrix products serve every expert and every weighting. A row whose coefficients are all 0 is the frozen base
model, bit for bit up to the addition of zero.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clp_lightning.errors import UsageError

# Which linear layers belong to the conditioned set S, as patterns on module names (Llama-type layouts).
CONDITIONED_SETS = {
    "full": r"(.*\.)?(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|lm_head)",
    "attention": r".*\.(q_proj|k_proj|v_proj|o_proj)",
    "logits": r"lm_head",
    "blocks": r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
}


class Steering:
    """The coefficients of the rows in flight, shared by all conditioned layers of a model."""

    def __init__(self) -> None:
        self.scale: Tensor | None = None  # [B, 1, M*r]; None: the base model alone


class ConditionedLinear(nn.Module):
    """A frozen linear layer with M low-rank experts; input [B, T, in], output [B, T, out]."""

    def __init__(
        self, base: nn.Linear, experts: int, rank: int, steering: Steering, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.steering = base, steering
        bound = math.sqrt(3 / base.in_features)
        a = torch.empty(experts * rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(base.weight.device))  # float32: small steps vanish in bfloat16
        self.b = nn.Parameter(torch.zeros(base.out_features, experts * rank, device=base.weight.device))
        self.cast: tuple[Tensor, Tensor] | None = None  # A and B in the base's dtype, while generating

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and, for rows that are steered, the weighted experts."""
        y = self.base(x)
        if self.steering.scale is None:
            return y
        a, b = self.cast or (self.a.to(x.dtype), self.b.to(x.dtype))
        return y + functional.linear(functional.linear(x, a) * self.steering.scale, b)


class Experts(nn.Module):
    """All experts of a model: M of rank r on every layer of the conditioned set.

    The base model's linear layers are replaced in place and its parameters frozen. Raises `UsageError` when the model
    has no layer of the set.
    """

    def __init__(
        self, model: nn.Module, *, conditioning: str, experts: int, rank: int, scaling: float = 2.0, seed: int = 0
    ):
        super().__init__()
        if experts < 1 or rank < 1:
            raise UsageError(f"experts={experts}, rank={rank}: both must be >= 1")
        self.count, self.rank, self.scaling, self.conditioning = experts, rank, scaling, conditioning
        self.steering = Steering()
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, ConditionedLinear] = {}
        pattern = re.compile(CONDITIONED_SETS[conditioning])
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and pattern.fullmatch(name):
                layer = ConditionedLinear(module, experts, rank, self.steering, generator)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer)
                self.layers[name] = layer
        if not self.layers:
            raise UsageError(
                f"{type(model).__name__} has no linear layer of the set {conditioning!r} ({pattern.pattern})"
            )
        self.dtype = next(iter(self.layers.values())).base.weight.dtype
        self.parameters_by_name = nn.ParameterDict(
            {
                f"{name}.{part}".replace(".", "/"): getattr(layer, part)
                for name, layer in self.layers.items()
                for part in "ab"
            }
        )

    @contextlib.contextmanager
    def steer(self, coefficients: Tensor | None) -> Iterator[None]:
        """Make every forward in the block use `coefficients` [B, M], one row per row of the batch; None: the base model."""
        before = self.steering.scale
        if coefficients is not None:
            scale = (coefficients * self.scaling).repeat_interleave(self.rank, dim=1)
            self.steering.scale = scale[:, None, :].to(self.dtype)
        else:
            self.steering.scale = None
        try:
            yield
        finally:
            self.steering.scale = before

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Cast the experts once for a block without gradients, instead of once per generated token."""
        for layer in self.layers.values():
            layer.cast = (layer.a.detach().to(self.dtype), layer.b.detach().to(self.dtype))
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.cast = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the experts' parameters by name (`LAYER.a` [M*r, in], `LAYER.b` [out, M*r]), for safetensors."""
        return {f"{name}.{part}": getattr(layer, part).detach() for name, layer in self.layers.items() for part in "ab"}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy parameters in from `tensors()`; raises KeyError or RuntimeError when names or shapes differ."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise KeyError(f"experts for other layers: {sorted(own.keys() ^ tensors.keys())[:3]}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def merge(self, model: Any, coefficients: Tensor) -> None:
        """Fold one weighting [M] into the base parameters and give `model` its plain linear layers back.

        A tied output layer gets parameters of its own first, so that the embedding stays as it is.
        """
        scale = (coefficients * self.scaling).repeat_interleave(self.rank)
        for name, layer in self.layers.items():
            update = (layer.b * scale) @ layer.a
            merged = layer.base.weight.float() + update
            layer.base.weight = nn.Parameter(merged.to(layer.base.weight.dtype), requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base)
            if name == "lm_head" and hasattr(model, "config"):
                model.config.tie_word_embeddings = False
