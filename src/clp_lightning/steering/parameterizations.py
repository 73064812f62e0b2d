"""Updates of a layer that are smaller than an expert per objective: PARM's bilinear core and Panacea's singular values.

Both are linear in a row's coefficients c_i and in their sum c, so that a layer stays `y = W x + B' (c' * (A' x))`: only the
factors A' and B' are made of other parameters. What is the same for all weightings is scaled by c: 0 for the reference policy.
"""

import math

import torch
from torch import Tensor, nn

from clp_lightning.config.methods import Parameterization
from clp_lightning.steering.conditioned import LowRankLinear, Role, Steering


class BilinearLinear(LowRankLinear):
    """`dW = B2 (sum_i c_i W2_i) A2 + c B1 W1 A1`: a weighting acts on a small core (PARM, arXiv 2505.06274).

    Both terms are of half the rank. A is A2 over A1, [r, in]; B is B2 beside B1, [out, r], and zero at first; the core is W2_1
    to W2_K and W1, [K + 1, r/2, r/2].
    """

    def __init__(
        self, base: nn.Linear, experts: int, rank: int, steering: Steering, role: Role, generator: torch.Generator
    ) -> None:
        super().__init__(base, 2, rank // 2, steering, role, generator)
        bound = math.sqrt(3 / self.rank)  # the core keeps the length of A x
        core = torch.empty(experts + 1, self.rank, self.rank).uniform_(-bound, bound, generator=generator)
        self.core = nn.Parameter(core.to(base.weight.device))

    def factors(self) -> list[Tensor]:
        """Return A' [(K + 1) r/2, in] = A2 K times over A1, and B' = [B2 W2_1 .. B2 W2_K, B1 W1]."""
        (a2, a1), (b2, b1) = self.a.chunk(2), self.b.chunk(2, dim=1)
        steered = (b2 @ self.core[:-1]).transpose(0, 1).flatten(1)
        return [torch.cat([a2.repeat(len(self.core) - 1, 1), a1]), torch.cat([steered, b1 @ self.core[-1]], 1)]

    @torch.no_grad()
    def at(self, coefficients: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """As in `LowRankLinear`, at `coefficients` [K + 1], the last their sum: `[A2; A1]` and `[B2 W2(c), c B1 W1]`."""
        b2, b1 = self.b.chunk(2, dim=1)
        core = torch.einsum("k,krs->rs", coefficients[:-1], self.core[:-1])
        return self.a, scaling * torch.cat([b2 @ core, coefficients[-1] * b1 @ self.core[-1]], 1)


class SingularLinear(LowRankLinear):
    """`dW = B diag(s c_1 .. s c_K, c sigma_1 .. c sigma_r) A`: a weighting is K more singular values (Panacea, arXiv 2402.02030).

    A is [K + r, in]; B [out, K + r] and zero at first; sigma [r] and the scale s [1] are 1 at first.
    """

    def __init__(
        self, base: nn.Linear, experts: int, rank: int, steering: Steering, role: Role, generator: torch.Generator
    ) -> None:
        super().__init__(base, 1, experts + rank, steering, role, generator)
        self.sigma = nn.Parameter(torch.ones(rank, device=base.weight.device))
        self.scale = nn.Parameter(torch.ones(1, device=base.weight.device))

    def factors(self) -> list[Tensor]:
        """Return A, and B with each column times its learned value."""
        return [self.a, self.b * torch.cat([self.scale.expand(len(self.a) - len(self.sigma)), self.sigma])]

    @torch.no_grad()
    def at(self, coefficients: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """As in `LowRankLinear`, at `coefficients` [K + 1], the last their sum: of rank K + r."""
        values = torch.cat([self.scale * coefficients[:-1], self.sigma * coefficients[-1]])
        return self.a, scaling * self.b * values


KINDS: dict[Parameterization, type[LowRankLinear]] = {
    "experts": LowRankLinear,
    "bilinear": BilinearLinear,
    "singular": SingularLinear,
}
