"""How often decoding asks a device for a number, which on a GPU waits for all that was begun; counted on the CPU.

`torch.cuda.set_sync_debug_mode` counted 13 for Llama's 6 tokens on an H200: these, and the random numbers' copy (tests/gpu).
"""

import collections
import traceback

import pytest
import torch
from tiny_models import DOCUMENTS, FAMILIES, make_policy, write_model
from torch.utils._python_dispatch import TorchDispatchMode

ASKING = ("_local_scalar_dense", "nonzero")  # `bool(tensor)`, `.item()`; sizes that depend on values, as of `x[mask]`


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for, by the package that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.by: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in ASKING or any(index is not None and index.dtype == torch.bool for index in indices):
            files = [frame.filename for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            self.by["ours" if "clp_lightning" in files[-2] else "transformers"] += 1  # the last is this file
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_asks_once_a_token_whether_a_row_is_left_and_transformers_once_for_its_mask(family, tmp_path):
    policy = make_policy(write_model(family, tmp_path / "model"))
    prompts = policy.tokenize(DOCUMENTS)
    coefficients = policy.coefficients([{"a": 1.0}, {"a": 0.3, "b": 0.7}, {"b": 1.0}], len(DOCUMENTS))
    uniform = policy.random_numbers(6, torch.Generator().manual_seed(0))
    with Waits() as waits:
        tokens = policy.rollout(prompts, coefficients, samples=2, uniform=uniform).ids.shape[1]
    assert tokens == policy.generation.max_new_tokens == 6
    assert waits.by == {"ours": tokens - 1, "transformers": tokens + 1}
