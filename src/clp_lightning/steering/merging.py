"""Merging experts' updates otherwise than by averaging: TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099)."""

import contextlib
from collections.abc import Iterator

import torch
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor, nn

from clp_lightning.config.methods import Merged
from clp_lightning.steering.experts import Experts


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
