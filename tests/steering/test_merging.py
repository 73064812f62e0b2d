"""Merging operators: golden values by hand, what holds at the ends of their settings, and PEFT's own where it has one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from clp_lightning.config.derived import SETTINGS, Merged
from clp_lightning.steering.merging import OPERATORS, merge


def merged(updates, weights, *, seed=0, **operator):
    return merge(updates, torch.tensor(weights), Merged(kind="merged", **operator), seed=seed)


# Two experts, epsilon 0.1. Only the first is active at entry 0, only the second at entry 1, both at 2, none at 3.
FIRST, SECOND = torch.tensor([[1.0, 0.0, 2.0, 0.05]]), torch.tensor([[0.0, 3.0, 4.0, 0.02]])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # equal weights: what one expert does is kept, what both do is averaged; entry 3: (0.05 + 0.02) / 2
        ([0.5, 0.5], [1.0, 3.0, 3.0, 0.035]),
        # entry 0: 0.25 / 0.75 of 1; entry 1: 0.75 / 0.75 of 3; entry 2: 0.25 * 2 + 0.75 * 4; entry 3: 0.0125 + 0.015
        ([0.25, 0.75], [1 / 3, 3.0, 3.5, 0.0275]),
        # (1 - alpha) w with alpha = 1/2: half of the above
        ([0.125, 0.375], [1 / 6, 1.5, 1.75, 0.01375]),
        ([0.0, 1.0], [0.0, 3.0, 4.0, 0.02]),
        ([0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),  # alpha = 1: the reference policy
    ],
)
def test_ram_keeps_what_one_expert_does_and_averages_what_several_do(weights, expected):
    found = merged([FIRST, SECOND], weights, operator="ram", epsilon=0.1)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_ram_of_three_experts_of_which_two_are_active():
    # S = {1, 2}: max_S w / max w = 0.3 / 0.5, times (0.2 * 2 + 0.3 * 4) / (0.2 + 0.3) = 3.2: 1.92. Equal weights: (2 + 4) / 2
    updates = [torch.tensor([[each]]) for each in (2.0, 4.0, 0.0)]
    assert merged(updates, [0.2, 0.3, 0.5], operator="ram", epsilon=0.1).item() == pytest.approx(1.92)
    assert merged(updates, [1 / 3] * 3, operator="ram", epsilon=0.1).item() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("weights", "cap", "expected"),
    [
        # each is active twice, once alone: rho = 1 / 1, cut to 0.2; (1 - 1/2) 2 / 1 = 1: what it does alone times 1.02
        ([0.5, 0.5], 0.2, [1.02, 3.06, 3.0, 0.035]),
        ([0.5, 0.5], 5.0, [1.1, 3.3, 3.0, 0.035]),  # rho as it is: 1 + 0.1
        # expert 1: (1 - 3/4) 2 = 1/2, so 1.01; expert 2: cut to 1, so 0.25 / 0.75 of 3.06
        ([0.75, 0.25], 0.2, [1.01, 1.02, 2.5, 0.0425]),
    ],
)
def test_ram_plus_makes_up_for_what_averaging_takes(weights, cap, expected):
    found = merged([FIRST, SECOND], weights, operator="ram_plus", epsilon=0.1, gain=0.1, cap=cap)
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_della_keeps_large_entries_rather_and_makes_up_for_those_that_it_drops():
    # ranks in each row 3, 0, 2, 1 of 4: kept with 0.5 + 0.4 ((r + 1/2) / 4 - 1/2) = 0.65, 0.35, 0.55, 0.45
    row, keep = torch.tensor([4.0, -1.0, 3.0, 2.0]), torch.tensor([0.65, 0.35, 0.55, 0.45])
    rows = 40_000
    found = merged([row.expand(rows, 4)], [1.0], operator="della", density=0.5, window=0.4)
    kept = found != 0
    torch.testing.assert_close(found[kept], (row / keep).expand(rows, 4)[kept])
    torch.testing.assert_close(kept.float().mean(0), keep, atol=4 * (0.25 / rows) ** 0.5, rtol=0)
    again = merged([row.expand(rows, 4)], [1.0], operator="della", density=0.5, window=0.4, seed=1)
    assert not torch.equal(found, again)


def test_breadcrumbs_drop_the_largest_and_the_smallest():
    # of ten, the two largest go (10 and -9), then half of all are kept: 8 to 4
    update = torch.tensor([[1.0, -9.0, 3.0, -7.0, 5.0], [-6.0, 4.0, 8.0, -2.0, 10.0]])
    found = merged([update, 0 * update], [0.5, 0.5], operator="breadcrumbs", density=0.5, outliers=0.2)
    expected = torch.tensor([[0.0, 0.0, 0.0, -7.0, 5.0], [-6.0, 4.0, 8.0, 0.0, 0.0]]) / 2
    torch.testing.assert_close(found, expected)


KEEPING_ALL = {
    "dare": {"density": 1.0}, "della": {"density": 1.0, "window": 0.0}, "breadcrumbs": {"density": 1.0, "outliers": 0.0},
    "ram": {"epsilon": 100.0}, "ram_plus": {"epsilon": 100.0, "gain": 0.1, "cap": 0.2},
}  # fmt: skip


def draws(seed: int, count: int) -> tuple[list[torch.Tensor], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    updates = torch.randn(count, 3, 5, generator=generator) * (torch.rand(count, 3, 5, generator=generator) < 0.7)
    weights = torch.rand(count, generator=generator)
    return list(updates), (weights / weights.sum()).tolist()


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(sorted(KEEPING_ALL)))
@settings(max_examples=100, deadline=None)
def test_an_operator_that_keeps_everything_is_the_weighted_sum(seed, count, operator):
    updates, weights = draws(seed, count)
    expected = sum(weight * update for weight, update in zip(weights, updates, strict=True))
    torch.testing.assert_close(merged(updates, weights, operator=operator, **KEEPING_ALL[operator]), expected)


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 2), st.floats(0, 3), st.floats(0, 3))
@settings(max_examples=100, deadline=None)
def test_ram_at_a_one_hot_weighting_is_that_expert_and_continuous_there(seed, count, epsilon, gain, cap):
    updates, weights = draws(seed, count)
    one_hot = [1.0] + [0.0] * (count - 1)
    near = [0.9999 * a + 0.0001 * b for a, b in zip(one_hot, weights, strict=True)]
    for operator, own in (("ram", {}), ("ram_plus", {"gain": gain, "cap": cap})):
        found = merged(updates, one_hot, operator=operator, epsilon=epsilon, **own)
        torch.testing.assert_close(found, updates[0])
        beside = merged(updates, near, operator=operator, epsilon=epsilon, **own)
        torch.testing.assert_close(beside, found, atol=0.02, rtol=0)  # 1e-4 of numbers below 5, times 1 + 3 * 3


def test_every_operator_has_its_settings():
    assert OPERATORS.keys() == SETTINGS.keys()


def test_ties_is_pefts_own():
    # PEFT merges two adapters of one layer by SVD at full rank, which is exact
    torch.manual_seed(0)
    size, weights = 8, [0.3, 0.7]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(size, size, bias=False)), config, adapter_name="a")
    model.add_adapter("b", config)
    layer = model.base_model.model[0]
    updates = [layer.get_delta_weight(name).detach() for name in ("a", "b")]
    model.add_weighted_adapter(["a", "b"], weights, "merged", combination_type="ties_svd", density=0.5, svd_rank=size)
    ours = merged(updates, weights, operator="ties", density=0.5)
    torch.testing.assert_close(ours, layer.get_delta_weight("merged").detach(), atol=1e-5, rtol=0)


def test_dare_drops_entries_and_scales_up_what_is_left():
    # an entry of the merge is w_a a / d or nothing, plus w_b b / d or nothing; half of each is kept (d = 0.5)
    torch.manual_seed(0)
    a, b = torch.rand(40, 50) + 1, torch.rand(40, 50) + 10
    dare = {"operator": "dare", "density": 0.5}
    found = merged([a, b], [0.3, 0.7], seed=1, **dare)
    parts = {(i, j): i * 0.3 * a / 0.5 + j * 0.7 * b / 0.5 for i in (0, 1) for j in (0, 1)}
    matches = {key: torch.isclose(found, value, atol=1e-5).float().mean().item() for key, value in parts.items()}
    assert sum(matches.values()) == pytest.approx(1)
    assert all(0.2 < share < 0.3 for share in matches.values())
    assert torch.equal(found, merged([a, b], [0.3, 0.7], seed=1, **dare))
    assert not torch.equal(found, merged([a, b], [0.3, 0.7], seed=2, **dare))
