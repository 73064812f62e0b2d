"""The frozen linear layer with experts: `y = W x + sum_i c_i D_i x`, each row of a batch with coefficients of its own."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

Rank = int | Literal["full"]
Role = Literal["conditioned", "shared"]


class Steering:
    """The scales of the rows in flight, shared by all layers of a model; None: the base model alone."""

    def __init__(self) -> None:
        self.conditioned: Tensor | None = None  # [B, 1, K*r], or [B, 1, K] at full rank; and their sum
        self.shared: Tensor | None = None  # [B, 1, r], or [B, 1, 1]
        self.repeats = 1  # of which so many in a row are the same


class ConditionedLinear(nn.Module):
    """A frozen linear layer with M experts; input [B, T, in], output [B, T, out]. `role` names its scale in `Steering`."""

    def __init__(self, base: nn.Linear, experts: int, steering: Steering, role: Role) -> None:
        super().__init__()
        self.base, self.steering, self.role, self.experts = base, steering, role, experts
        self.cast: list[Tensor] | None = None  # the parameters in the base's dtype, while generating

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: T5 looks at its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and, for rows that are steered, the weighted experts."""
        scale = getattr(self.steering, self.role)
        return self.base(x) if scale is None else self.steered(x, scale)

    def own(self) -> list[nn.Parameter]:
        """The experts' parameters: [A, B], or [D] at full rank."""
        return list(self.parameters(recurse=False))

    def factors(self) -> list[Tensor]:
        """What a forward multiplies with: the experts' parameters themselves, or what is made of them."""
        return [*self.own()]

    def freeze(self, dtype: torch.dtype) -> None:
        """Cast the experts once for many forwards without gradients."""
        self.cast = [factor.detach().to(dtype) for factor in self.factors()]

    def thaw(self) -> None:
        """Go on with the parameters themselves."""
        self.cast = None

    def steered(self, x: Tensor, scale: Tensor) -> Tensor:
        """Apply the base layer and the experts, whose rows have `scale` [B, 1, M*r], or [B, 1, M] at full rank."""
        raise NotImplementedError

    def update(self, coefficients: Tensor, scaling: float) -> Tensor:
        """Return what the experts add to the base weight at `coefficients` [M], float32 [out, in]."""
        raise NotImplementedError

    def plus(self, y: Tensor, inner: Tensor, b: Tensor) -> Tensor:
        """Add `b @ inner` to the base layer's output y."""
        if not self.base.weight.is_floating_point():  # autograd refuses to change a quantized layer's output
            return y + functional.linear(inner, b)
        y.flatten(0, -2).addmm_(inner.flatten(0, -2), b.T)  # in place: no second copy of a large y
        return y


class LowRankLinear(ConditionedLinear):
    """Experts `D_i = B_i A_i` of rank r; A is [M*r, in], B [out, M*r] and zero at first."""

    def __init__(
        self, base: nn.Linear, experts: int, rank: int, steering: Steering, role: Role, generator: torch.Generator
    ) -> None:
        super().__init__(base, experts, steering, role)
        self.rank, device = rank, base.weight.device
        bound = math.sqrt(3 / base.in_features)
        a = torch.empty(experts * rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.a = nn.Parameter(a.to(device))  # float32: small steps vanish in bfloat16
        self.b = nn.Parameter(torch.zeros(base.out_features, experts * rank, device=device))
        self.stacked: Tensor | None = None  # W over A over zeros, [out + M*r and up to 7 more, in]
        self.frozen: tuple[Tensor, Tensor | None, Tensor, list[int]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and, for rows that are steered, the experts; while frozen, one product serves W and A."""
        scale = getattr(self.steering, self.role)
        if self.frozen is None or scale is None:
            return super().forward(x)
        stacked, bias, b, sizes = self.frozen  # found once, not in modules for every layer and token
        y, inner, *_ = functional.linear(x, stacked, bias).split_with_sizes(sizes, -1)
        y.flatten(0, -2).addmm_((inner * scale).flatten(0, -2), b)
        return y

    def steered(self, x: Tensor, scale: Tensor) -> Tensor:
        """Apply base and experts, with gradients or on a quantized base."""
        a, b = self.cast or [factor.to(x.dtype) for factor in self.factors()]
        if self.base.weight.is_floating_point():
            return LowRankProduct.apply(x, a, b, scale, self.base)
        return self.plus(self.base(x), functional.linear(x, a) * scale, b)

    def freeze(self, dtype: torch.dtype) -> None:
        """Cast the experts, and put A under W, where it stays: W itself is copied once in the layer's life."""
        weight, bias = self.base.weight, self.base.bias
        if not weight.is_floating_point():
            super().freeze(dtype)
            return
        a, b = (factor.detach().to(dtype) for factor in self.factors())
        if self.stacked is None or self.stacked.data_ptr() != weight.data_ptr():  # never made, or the model was moved
            # y is a part of the product: a row's length in whole groups of 8 keeps it aligned for attention on a GPU
            unused = a.new_zeros(-(len(weight) + len(a)) % 8, a.shape[1])
            self.stacked = torch.cat([weight.data, a.to(weight), unused.to(weight)])
            weight.data = self.stacked[: len(weight)]  # in place: an embedding that is tied to it stays tied
        sizes = [len(weight), len(a), len(self.stacked) - len(weight) - len(a)]
        self.stacked[len(weight) : len(weight) + len(a)] = a
        padded = None if bias is None else functional.pad(bias, (0, len(self.stacked) - len(bias)))
        self.frozen = (self.stacked, padded, b.T, sizes)

    def thaw(self) -> None:
        """Go on with the parameters themselves."""
        super().thaw()
        self.frozen = None

    @torch.no_grad()
    def update(self, coefficients: Tensor, scaling: float) -> Tensor:
        """Return what the experts add to the base weight at `coefficients` [M], float32 [out, in]."""
        a, b = self.at(coefficients, scaling)
        return b @ a

    @torch.no_grad()
    def at(self, coefficients: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Return the update at `coefficients` [M] as factors A [R, in] and B [out, R], float32: it is `B A`."""
        return self.a, self.b * (scaling * coefficients).repeat_interleave(self.rank)


class LowRankProduct(Function):
    """`y = W x + B (c * (A x))` with W frozen; autograd's own steps would make a second gradient of x and add them up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: Tensor, base: nn.Linear) -> Tensor:
        """Keep the inputs and the scaled `A x`, [B*T, M*r]."""
        rows = x.flatten(0, -2)
        scales = scale.expand(*x.shape[:-1], -1).flatten(0, -2)
        scaled = (rows @ a.T) * scales
        y: Tensor = base(x)
        y.flatten(0, -2).addmm_(scaled, b.T)
        ctx.save_for_backward(rows, scaled, scales, a, b, base.weight)
        ctx.shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        rows, scaled, scales, a, b, weight = ctx.saved_tensors
        g = gradient.flatten(0, -2)
        inner = (g @ b) * scales
        x = None
        if ctx.needs_input_grad[0]:
            x = (g @ weight).addmm_(inner, a).view(ctx.shape)
        return x, inner.T @ rows, g.T @ scaled, None, None


class FullRankLinear(ConditionedLinear):
    """Experts D_i of full rank, side by side in [out, M*in] and zero at first."""

    def __init__(self, base: nn.Linear, experts: int, steering: Steering, role: Role) -> None:
        super().__init__(base, experts, steering, role)
        self.delta = nn.Parameter(torch.zeros(base.out_features, experts * base.in_features, device=base.weight.device))

    def steered(self, x: Tensor, scale: Tensor) -> Tensor:
        """Apply base and experts; rows with one weighting share an average where that is cheaper."""
        delta = self.cast[0] if self.cast else self.delta.to(x.dtype)
        if self.merges(x):
            return self.merged(x, scale[:: self.steering.repeats, 0], delta)
        inner = (scale[..., None] * x[..., None, :]).flatten(-2)  # [B, T, M*in]
        return self.plus(self.base(x), inner, delta)

    def merges(self, x: Tensor) -> bool:
        """Tell whether a weight per group takes no more memory than the scaled inputs of its rows."""
        inputs = self.steering.repeats * x.shape[1] * self.experts * x.shape[2]
        return self.base.weight.dtype == torch.float32 and self.base.weight.numel() <= inputs

    def merged(self, x: Tensor, scale: Tensor, delta: Tensor) -> Tensor:
        """Average the experts once per group of rows with one weighting, `scale` [G, M]: one product instead of M + 1."""
        out, width = self.base.weight.shape
        each = delta.view(out, self.experts, width).transpose(0, 1).reshape(self.experts, -1)
        weight = torch.addmm(self.base.weight.flatten(), scale, each).view(-1, out, width)
        y = torch.bmm(x.reshape(len(scale), -1, width), weight.mT).view(*x.shape[:-1], out)
        return y if self.base.bias is None else y + self.base.bias

    @torch.no_grad()
    def update(self, coefficients: Tensor, scaling: float) -> Tensor:
        """Return what the experts add to the base weight at `coefficients` [M], float32 [out, in]."""
        each = self.delta.unflatten(1, (self.experts, -1))
        return scaling * torch.einsum("m,omi->oi", coefficients, each)
