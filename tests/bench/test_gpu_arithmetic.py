"""What the GPU script divides by: the multiplications it says a pass makes are those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.subjects import TINY, prompts_of, random_model, size_of, steerable


@pytest.mark.parametrize("samples", [1, 4])
def test_a_reference_forward_multiplies_as_often_as_is_said(samples):
    shape = TINY["tiny"]
    model = random_model(shape, "cpu", torch.float32)
    size = size_of(model)
    policy = steerable(model, shape.tokens)
    prompts = prompts_of(policy, 4 // samples)
    ids = torch.ones(4, shape.tokens, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.score(prompts, ids, torch.ones_like(ids, dtype=torch.bool), None, samples=samples)
    read, answered = (4 // samples) * shape.tokens + 4 * (shape.tokens - 1), 4 * shape.tokens
    # beside attention's own products, which grow with the length and are a few thousand here
    assert 0 <= counter.get_total_flops() - 2 * size.products(read, answered) < 0.02 * counter.get_total_flops()
