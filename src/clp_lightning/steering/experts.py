"""Per-objective experts on linear layers, averaged per row: `theta(w) = theta_rest + sum_i w_i theta_S^(i)`.

A linear layer is linear in its parameters, so averaging M experts per row is exact without a copy of the parameters per
weighting. With low-rank experts, the A's stacked to [M*r, in] and the B's to [out, M*r],

    y = W x + B (c * (A x)),    c = coefficients of the row, each repeated r times;

with full-rank ones, side by side in [out, M*in], `y = W x + D (c_1 x, ..., c_M x)`. Two matrix products (one) serve every expert
and every weighting; where many rows in a run have one weighting, full-rank experts are added up first. A row whose
coefficients are all 0 is the frozen base model, bit for bit up to the addition of zero (and the order of sums, if added up).
Layers outside of S may carry one expert that all weightings share (`theta_rest`); its coefficient is the sum of the row's, so
1 for a weighting, `1 - alpha` where the KL strength is conditioned on, and 0 for the reference policy.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clp_lightning.config.data import Layers
from clp_lightning.config.methods import Parameterization, rank_problem
from clp_lightning.errors import UsageError
from clp_lightning.steering.conditioned import ConditionedLinear, FullRankLinear, LowRankLinear, Rank, Role, Steering
from clp_lightning.steering.layers import DISCOVERED, conditioned_set, quantization_of, some_linear
from clp_lightning.steering.parameterizations import KINDS


class Experts(nn.Module):
    """All experts of a model: K on every layer of the conditioned set, and with `shared` one on every other linear layer.

    With `shared` "everywhere" the conditioned layers have that one beside their K, too.

    The base model's linear layers are replaced in place and its parameters frozen. `rank` is that of a low-rank expert, or
    "full". `parameterization` says what the conditioned layers have instead of experts (`steering.parameterizations`). Raises
    `UsageError` when the model has no layer to train, and for a rank that the parameterization cannot have.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        conditioning: str,
        experts: int,
        rank: Rank,
        shared: bool | Literal["everywhere"] = False,
        parameterization: Parameterization = "experts",
        scaling: float = 2.0,
        layers: Layers | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if experts < 1 or (rank != "full" and rank < 1):
            raise UsageError(f"experts={experts}, rank={rank}: both must be >= 1")
        if problem := rank_problem(parameterization, rank):
            raise UsageError(f"rank={rank}: {problem}")
        self.count, self.rank, self.scaling, self.conditioning, self.shared = (
            experts, rank, scaling if rank != "full" else 1.0, conditioning, shared
        )  # fmt: skip
        self.parameterization = parameterization
        beside, each = shared == "everywhere", 1 if rank == "full" else rank
        self._count = experts + beside  # on a conditioned layer
        # what a conditioned layer's scale has of each coefficient, and of their sum
        widths = {"experts": (each, each * beside), "bilinear": (each // 2, each // 2), "singular": (1, each)}
        self._each, self._rest = widths[parameterization]
        self.patterns, self.steering = layers, Steering()
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, ConditionedLinear] = {}
        everything, chosen = (conditioned_set(name, layers) for name in ("full", conditioning))
        output = re.compile((layers or DISCOVERED).logits)
        self.output_layers = [name for name, _ in model.named_modules() if output.fullmatch(name)]
        for name, module in list(model.named_modules()):
            conditioned = bool(chosen.fullmatch(name))
            if isinstance(module, nn.Linear) and (conditioned or (shared and everything.fullmatch(name))):
                layer = self._layer(
                    module, self._count if conditioned else 1, "conditioned" if conditioned else "shared", generator
                )
                _put(model, name, layer)
                self.layers[name] = layer
        trained = {name for name, layer in self.layers.items() if layer.role == "conditioned" or conditioning == "none"}
        aside = ""
        if conditioning in ("full", "none"):  # an output layer by itself is no policy of the whole model
            trained, aside = trained - set(self.output_layers), " beside its output layer"
        if not trained:
            raise UsageError(
                f"{type(model).__name__} has no linear layer of the set {conditioning!r}{aside} ({chosen.pattern}); choose "
                f"another conditioning, or name its layers in params.yaml (layers); it has {some_linear(model)}"
            )
        self.quantized = quantization_of(model) is not None
        first = next(iter(self.layers.values())).base.weight
        self.dtype: torch.dtype = model.dtype if self.quantized else first.dtype  # type: ignore[assignment]
        self.parameters_by_name = nn.ParameterDict({
            name.replace(".", "/"): parameter for name, parameter in self._named().items()
        })  # fmt: skip

    @contextlib.contextmanager
    def steer(self, coefficients: Tensor | None, *, repeats: int = 1) -> Iterator[None]:
        """Make every forward in the block use `coefficients` [B, K], one row per row of the batch; None: the base model.

        `repeats` may say that so many consecutive rows are always the same; nothing but speed depends on it.
        """
        before = self.steering.conditioned, self.steering.shared, self.steering.repeats
        self.steering.repeats = repeats
        if coefficients is None:
            self.steering.conditioned = self.steering.shared = None
        else:
            repeats = 1 if self.rank == "full" else self.rank
            scaled = coefficients * self.scaling
            total, own = scaled.sum(1, keepdim=True), scaled.repeat_interleave(self._each, dim=1)
            own = torch.cat([own, total.expand(-1, self._rest)], 1) if self._rest else own
            self.steering.conditioned = own[:, None].to(self.dtype)
            self.steering.shared = total.expand(-1, repeats)[:, None].to(self.dtype)
        try:
            yield
        finally:
            self.steering.conditioned, self.steering.shared, self.steering.repeats = before

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Cast the experts once for a block without gradients, instead of once per generated token."""
        for layer in self.layers.values():
            dtype = layer.base.weight.dtype if self.quantized and layer.base.weight.is_floating_point() else self.dtype
            layer.freeze(dtype)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.thaw()

    def tensors(self) -> dict[str, Tensor]:
        """Return the experts' parameters by name: `LAYER.a` [M*r, in] and `LAYER.b` [out, M*r], ..., or `LAYER.delta`."""
        return {name: parameter.detach() for name, parameter in self._named().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy parameters in from `tensors()`; raises KeyError or RuntimeError when names or shapes differ."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise KeyError(f"experts for other layers: {sorted(own.keys() ^ tensors.keys())[:3]}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def layer_coefficients(self, layer: ConditionedLinear, coefficients: Tensor) -> Tensor:
        """Return what a layer's own experts get of one row of coefficients [K]: all of it, their sum if shared, or both."""
        total = coefficients.sum(0, keepdim=True)
        if layer.role == "shared":
            return total
        return torch.cat([coefficients, total]) if self._rest else coefficients

    @torch.no_grad()
    def merge(self, model: Any, coefficients: Tensor) -> None:
        """Fold one row of coefficients [K] into the base parameters and give `model` its plain linear layers back.

        A tied output layer gets parameters of its own first, so that the embedding stays as it is. A quantized model is
        dequantized: what the experts add would be lost in 4 or 8 bits.
        """
        self.dequantize(model)
        for name, layer in self.layers.items():
            update = layer.update(self.layer_coefficients(layer, coefficients), self.scaling)
            merged = layer.base.weight.float() + update
            layer.base.weight = nn.Parameter(merged.to(layer.base.weight.dtype), requires_grad=False)
            _put(model, name, layer.base)
            if name in self.output_layers and hasattr(model, "config"):
                model.config.tie_word_embeddings = False

    def detach(self, model: nn.Module) -> None:
        """Give `model` the layers back that it had."""
        for name, layer in self.layers.items():
            _put(model, name, layer.base)

    def dequantize(self, model: Any) -> None:
        """Give a quantized model ordinary linear layers with the values that it has, for good; others stay as they are."""
        if self.quantized:
            model.dequantize(dtype=self.dtype)
            model.requires_grad_(False)
            self.parameters_by_name.requires_grad_(True)
            self.quantized = False

    def _layer(self, base: nn.Linear, count: int, role: Role, generator: torch.Generator) -> ConditionedLinear:
        if self.rank == "full":
            return FullRankLinear(base, count, self.steering, role)
        kind = KINDS[self.parameterization] if role == "conditioned" else LowRankLinear
        return kind(base, count, self.rank, self.steering, role, generator)

    def _named(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{part}": parameter for name, layer in self.layers.items()
            for part, parameter in layer.named_parameters(recurse=False)
        }  # fmt: skip


def run_length(groups: Tensor) -> int:
    """Return how many consecutive rows always have the same group, of `groups` [B]; 1 where runs differ in length."""
    lengths = torch.unique_consecutive(groups, return_counts=True)[1]
    return int(lengths[0]) if bool((lengths == lengths[0]).all()) else 1


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
