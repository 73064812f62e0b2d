"""The frozen linear layer with experts: `y = W x + sum_i c_i D_i x`, each row of a batch with coefficients of its own."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Rank = int | Literal["full"]


class Steering:
    """The scales of the rows in flight, shared by all layers of a model; None: the base model alone."""

    def __init__(self) -> None:
        self.conditioned: Tensor | None = None  # [B, 1, K*r], or [B, 1, K] at full rank
        self.shared: Tensor | None = None  # [B, 1, r], or [B, 1, 1]
        self.repeats = 1  # of which so many in a row are the same


class ConditionedLinear(nn.Module):
    """A frozen linear layer with M experts; input [B, T, in], output [B, T, out]. `role` names its scale in `Steering`."""

    def __init__(
        self,
        base: nn.Linear,
        experts: int,
        rank: Rank,
        steering: Steering,
        role: Literal["conditioned", "shared"],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.base, self.steering, self.role, self.experts, self.rank = base, steering, role, experts, rank
        device = base.weight.device  # parameters are float32: small steps vanish in bfloat16
        if rank == "full":
            self.delta = nn.Parameter(torch.zeros(base.out_features, experts * base.in_features, device=device))
        else:
            bound = math.sqrt(3 / base.in_features)
            a = torch.empty(experts * rank, base.in_features).uniform_(-bound, bound, generator=generator)
            self.a = nn.Parameter(a.to(device))
            self.b = nn.Parameter(torch.zeros(base.out_features, experts * rank, device=device))
        self.cast: list[Tensor] | None = None  # the parameters in the base's dtype, while generating

    @property
    def weight(self) -> Tensor:
        """The base layer's weight: T5 looks at its type."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the base layer and, for rows that are steered, the weighted experts."""
        scale = getattr(self.steering, self.role)
        if scale is None:
            return self.base(x)
        parameters = self.cast or [parameter.to(x.dtype) for parameter in self.own()]
        if self.rank == "full":
            if self.merges(x):
                return self.merged(x, scale[:: self.steering.repeats, 0], parameters[0])
            inner, b = (scale[..., None] * x[..., None, :]).flatten(-2), parameters[0]  # [B, T, M*in]
        else:
            a, b = parameters
            inner = functional.linear(x, a) * scale
        y = self.base(x)
        if not self.base.weight.is_floating_point():  # autograd refuses to change a quantized layer's output
            return y + functional.linear(inner, b)
        y.flatten(0, -2).addmm_(inner.flatten(0, -2), b.T)  # in place: no second copy of a large y
        return y

    def merges(self, x: Tensor) -> bool:
        """Tell whether a weight per group takes no more memory than the scaled inputs of its rows, at full rank."""
        inputs = self.steering.repeats * x.shape[1] * self.experts * x.shape[2]
        return self.base.weight.dtype == torch.float32 and self.base.weight.numel() <= inputs

    def merged(self, x: Tensor, scale: Tensor, delta: Tensor) -> Tensor:
        """Average full-rank experts once per group of rows with one weighting, `scale` [G, M]: one product instead of M + 1."""
        out, width = self.base.weight.shape
        each = delta.view(out, self.experts, width).transpose(0, 1).reshape(self.experts, -1)
        weight = torch.addmm(self.base.weight.flatten(), scale, each).view(-1, out, width)
        y = torch.bmm(x.reshape(len(scale), -1, width), weight.mT).view(*x.shape[:-1], out)
        return y if self.base.bias is None else y + self.base.bias

    def own(self) -> list[Tensor]:
        """The experts' parameters: [A, B], or [D] at full rank."""
        return [self.delta] if self.rank == "full" else [self.a, self.b]

    @torch.no_grad()
    def update(self, coefficients: Tensor, scaling: float) -> Tensor:
        """Return what the experts add to the base weight at `coefficients` [M], float32 [out, in]."""
        if self.rank == "full":
            each = self.delta.unflatten(1, (self.experts, -1))
            return scaling * torch.einsum("m,omi->oi", coefficients, each)
        return (self.b * (scaling * coefficients).repeat_interleave(self.rank)) @ self.a
