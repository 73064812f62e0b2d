"""Merging experts' updates otherwise than by averaging: TIES and DARE are PEFT's own, the others follow their formulas.

An operator takes the K updates of a layer, each [out, in], and coefficients [K], which are >= 0 and add up to 1 (to less where
the KL strength is conditioned on). None of the papers has a weighting: docs/paper_map.md says how it enters.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor, nn

from clp_lightning.config.derived import Merged
from clp_lightning.steering.experts import Experts

TINY = torch.finfo(torch.float32).tiny


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
    """Merge updates, each [out, in], with coefficients [K]; what is dropped at random is the same for one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OPERATORS[operator.operator](updates, coefficients, **operator.settings)


def della(updates: list[Tensor], coefficients: Tensor, density: float, window: float) -> Tensor:
    """Drop entries at random, small ones rather, and divide those kept by their probability (MagPrune, arXiv 2406.11617).

    The entry of rank r (0 the smallest) among the n of its row is kept with `density + window ((r + 1/2) / n - 1/2)`.
    """

    def pruned(update: Tensor) -> Tensor:
        order, places = update.abs().argsort(dim=-1, stable=True), torch.arange(update.shape[-1], device=update.device)
        ranks = torch.empty_like(order).scatter_(-1, order, places.expand_as(order))
        keep = density + window * ((ranks + 0.5) / len(places) - 0.5)
        drawn = torch.rand(update.shape).to(update.device)  # on the CPU, so that every device draws the same
        return torch.where(drawn < keep, update / keep, 0)

    return _weighted_sum([pruned(update) for update in updates], coefficients)


def breadcrumbs(updates: list[Tensor], coefficients: Tensor, density: float, outliers: float) -> Tensor:
    """Keep a share `density` of each update: the largest entries but for the share `outliers` above (arXiv 2312.06795)."""

    def pruned(update: Tensor) -> Tensor:
        sizes, count = update.abs(), update.numel()
        last = max(1, count - round(outliers * count))  # of the entries in ascending order, the last that is kept
        below = last - round(density * count)
        smallest = sizes.flatten().kthvalue(below).values if below > 0 else -1.0
        return torch.where((sizes > smallest) & (sizes <= sizes.flatten().kthvalue(last).values), update, 0)

    return _weighted_sum([pruned(update) for update in updates], coefficients)


def ram(updates: list[Tensor], coefficients: Tensor, epsilon: float) -> Tensor:
    """Average where several experts are active, |update| > epsilon, and keep in full what one alone does (arXiv 2601.13572).

    With S the experts that are active at an entry, w the weighting and t the coefficients' sum, an entry becomes
    `t (max_S w / max w) (sum_S w_i D_i) / (sum_S w_i)`, plus the weighted sum of the others, which the paper drops. At equal
    weights that is RAM, at a one-hot w its expert, and it is continuous between.
    """
    return _ram(torch.stack(updates), coefficients, epsilon, torch.ones_like(coefficients))


def ram_plus(updates: list[Tensor], coefficients: Tensor, epsilon: float, gain: float, cap: float) -> Tensor:
    """Merge as `ram`, and scale what expert i alone does by `1 + gain min(rho_i, cap)` (RAM+, arXiv 2601.13572).

    rho_i is the number of the layer's entries at which i is active with others over those at which it is alone. The second
    summand is multiplied by `min(1, (1 - w_i) K / (K - 1))`: an expert that is not averaged with others loses nothing.
    """
    stacked, count = torch.stack(updates), len(updates)
    active = stacked.abs() > epsilon
    alone = (active & (active.sum(0) == 1)).flatten(1).sum(1)
    rho = (active.flatten(1).sum(1) - alone) / alone.clamp(min=1)
    diluted = (1 - coefficients / coefficients.sum().clamp(min=TINY)) * count / max(count - 1, 1)
    return _ram(stacked, coefficients, epsilon, 1 + gain * rho.clamp(max=cap) * diluted.clamp(max=1))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "ties": ties, "dare": dare_linear, "della": della, "breadcrumbs": breadcrumbs, "ram": ram, "ram_plus": ram_plus,
}  # fmt: skip


def _ram(updates: Tensor, coefficients: Tensor, epsilon: float, scales: Tensor) -> Tensor:
    """Merge updates [K, out, in] as `ram`; where an expert alone is active, its update is multiplied by its scale, of [K]."""
    active = updates.abs() > epsilon
    weights = coefficients[:, None, None] * active
    strength = weights.amax(0) / coefficients.max().clamp(min=TINY)
    scaled = torch.where(active.sum(0) == 1, scales[:, None, None], 1) * updates
    average = (weights * scaled).sum(0) / weights.sum(0).clamp(min=TINY)
    return coefficients.sum() * strength * average + _weighted_sum(list(updates * ~active), coefficients)


def _weighted_sum(updates: list[Tensor], coefficients: Tensor) -> Tensor:
    return torch.einsum("k,kij->ij", coefficients, torch.stack(updates))
