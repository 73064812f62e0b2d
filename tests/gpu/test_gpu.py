"""What must hold on a GPU: `python -m bench.gpu --part right` runs these where there is one (docs/gpu.md)."""

import warnings

import numpy as np
import pytest
import torch
from gpu_models import DEVICE, MIXED, copied, on
from tiny_models import DOCUMENTS, FAMILIES, OBJECTIVES, all_log_probs, make_policy, write_model
from transformers import AutoModelForCausalLM

from clp_lightning.config.methods import Dirichlet
from clp_lightning.config.parameters import Sft, Training
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.sft import SftModule
from clp_lightning.training.trainer import fit

pytestmark = pytest.mark.gpu
on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("llama") / "model")


def training(**changes) -> Training:
    settings = dict(
        seed=0, steps=4, accumulate=1, devices=1, prompts_per_step=2, samples_per_prompt=2, learning_rate=1e-2, rank=3,
        alpha=0.05, alpha_start=None, alpha_high=None, kl="reward", baseline="leave_one_out", advantages="batch",
        gradient_clip=1.0, checkpoint_every=2,
    )  # fmt: skip
    return Training(**(settings | changes))


def length(documents, responses) -> np.ndarray:
    words = np.array([len(response) for response in responses], dtype=np.float64)
    return np.stack([words, -words], axis=1) / 10


def clp(folder, checkpoints, *, stop_after=None, **changes) -> ClpModule:
    policy = make_policy(folder)
    dirichlet = Dirichlet(kind="dirichlet", concentration=1.0)
    module = ClpModule(policy, training(**changes), dirichlet, DOCUMENTS, length, seed=0)
    if stop_after:
        module.steps = stop_after
    fit(module, checkpoints=checkpoints, every=2, show_progress=False)
    return module


@on_a_gpu
def test_models_are_loaded_on_the_gpu(llama):
    assert load_base(llama)[0].device.type == "cuda" and load_base(llama, device="cpu")[0].device.type == "cpu"


def test_every_row_equals_its_materialized_model(family):
    policy = make_policy(family)
    assert policy.model.device.type == DEVICE
    rows = all_log_probs(policy, MIXED)
    for row, weighting in enumerate(MIXED):
        merged = copied(policy).materialize(weighting)
        torch.testing.assert_close(rows[row], all_log_probs(merged, None)[row], atol=2e-5, rtol=1e-5)


def test_cpu_and_gpu_write_and_score_alike_in_float32(family):
    policy = make_policy(family)
    other = on(policy, "cpu")
    torch.testing.assert_close(all_log_probs(policy, MIXED).cpu(), all_log_probs(other, MIXED), atol=1e-4, rtol=1e-4)
    for temperature in (0.0, 1.0):  # sampled with the same numbers
        texts = [each.generate(DOCUMENTS, MIXED, temperature=temperature, seed=3) for each in (policy, other)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("conditioning", ["full", "attention", "logits"])
def test_in_bfloat16_steered_rows_are_as_near_float32_as_materialized_models(conditioning, llama, tmp_path):
    exact = make_policy(llama, conditioning)
    exact.save(tmp_path / "saved", base_model=str(llama))
    half = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.model.device.type == DEVICE
    expected, rows = all_log_probs(exact, MIXED), all_log_probs(half, MIXED)
    merged = torch.cat([all_log_probs(copied(half).materialize(w), None)[[row]] for row, w in enumerate(MIXED)])
    steered_off, merged_off = ((found - expected).square().mean().sqrt() for found in (rows, merged))
    print(f"off by {steered_off:.4f} steered, {merged_off:.4f} materialized")
    assert steered_off < max(2 * merged_off, 0.01)


@pytest.mark.parametrize("baseline", ["leave_one_out", "regression", "value"])
def test_clp_trains_and_the_policy_is_used_afterwards(family, baseline, tmp_path):
    module = clp(family, tmp_path, baseline=baseline, kl="loss")
    policy = module.policy
    assert all(np.isfinite(row["loss"]) for row in module.curve) and len(module.curve) == 4
    assert {parameter.device.type for parameter in policy.experts.parameters()} == {DEVICE}
    assert len(policy.generate(DOCUMENTS, MIXED)) == len(DOCUMENTS)
    policy.materialize({"a": 1.0}).generate(DOCUMENTS, None)


def test_supervised_finetuning_and_its_merge(llama, tmp_path):
    policy = make_policy(llama, "blocks", objectives=("likelihood",))
    module = SftModule(policy, Sft(steps=3, batch_size=2, learning_rate=1e-3, rank=3), DOCUMENTS, DOCUMENTS, 0)
    fit(module, checkpoints=tmp_path, every=1, show_progress=False)
    policy.experts.merge(policy.model, torch.ones(1, device=policy.model.device))
    policy.model.save_pretrained(tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").device.type == "cpu"


def test_a_resumed_training_ends_as_one_without_a_break(llama, tmp_path):
    whole = clp(llama, tmp_path / "whole")
    policy = make_policy(llama)
    first = ClpModule(policy, training(), Dirichlet(kind="dirichlet", concentration=1.0), DOCUMENTS, length, seed=0)

    class Stopped(Exception):
        pass

    def stop(documents, responses):
        if first.global_step == 3:
            raise Stopped
        return length(documents, responses)

    first.rewards = stop
    with pytest.raises(Stopped):
        fit(first, checkpoints=tmp_path / "parts", every=2, show_progress=False)
    resumed = clp(llama, tmp_path / "parts")
    for name, tensor in whole.policy.experts.tensors().items():
        torch.testing.assert_close(resumed.policy.experts.tensors()[name], tensor, atol=1e-6, rtol=1e-5)


def test_an_export_answers_alike(llama, tmp_path):
    policy = make_policy(llama)
    texts = policy.generate(DOCUMENTS, {"a": 0.3, "b": 0.7}, temperature=0.0)
    policy.export({"a": 0.3, "b": 0.7}, tmp_path / "out", "hf")
    model, tokenizer = load_base(tmp_path / "out", dtype=torch.float32)
    plain = SteerablePolicy(model, tokenizer, policy.generation, objectives=OBJECTIVES)
    assert plain.generate(DOCUMENTS, None, temperature=0.0) == texts


def test_a_saved_policy_comes_back(llama, tmp_path):
    policy = make_policy(llama)
    policy.save(tmp_path / "saved", base_model=str(llama))
    loaded = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert loaded.model.device.type == DEVICE
    torch.testing.assert_close(all_log_probs(loaded, MIXED), all_log_probs(policy, MIXED))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_bases_are_steered_and_trained(quantization, llama, tmp_path):
    pytest.importorskip("bitsandbytes")
    from clp_lightning.steering.experts import Experts

    model, tokenizer = load_base(llama, quantization=quantization)
    policy = SteerablePolicy(
        model, tokenizer, make_policy(llama).generation, objectives=OBJECTIVES,
        experts=Experts(model, conditioning="full", experts=2, rank=3),
    )  # fmt: skip
    module = ClpModule(policy, training(), Dirichlet(kind="dirichlet", concentration=1.0), DOCUMENTS, length, seed=0)
    fit(module, checkpoints=tmp_path, every=2, show_progress=False)
    assert len(policy.generate(DOCUMENTS, MIXED)) == len(DOCUMENTS)


@on_a_gpu
def test_decoding_waits_for_the_gpu_twice_a_token_and_nowhere_else(llama):
    # whether a row is left, and transformers' look at its mask (tests/policy/test_waits.py says which is whose)
    policy = make_policy(llama)
    prompts = policy.tokenize(DOCUMENTS)
    coefficients = policy.coefficients(MIXED, len(DOCUMENTS))
    policy.rollout(prompts, coefficients, samples=2)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            policy.rollout(prompts, coefficients, samples=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in seen if "synchroniz" in str(warning.message)]
    print("waits:", len(waits), "in", policy.generation.max_new_tokens, "tokens")
    assert len(waits) <= 2 * policy.generation.max_new_tokens + 1  # the random numbers are copied there
