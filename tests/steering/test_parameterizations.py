"""PARM's core and Panacea's singular values: by hand, against their formulas, and against merged plain models."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import GENERATION, OBJECTIVES, all_log_probs, make_policy, write_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from clp_lightning.errors import UsageError
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.conditioned import LowRankLinear, Steering
from clp_lightning.steering.parameterizations import KINDS

OWN = ("bilinear", "singular")
VARIANTS = [(kind, *rest) for kind in OWN for rest in (("full", False), ("attention", True))]
WEIGHTINGS = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])


def make_layer(kind, width, out, objectives, rank, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frozen = nn.Linear(width, out, bias=False, dtype=dtype).requires_grad_(False)
    frozen.weight.data.normal_(generator=generator)
    return KINDS[kind](frozen, objectives, rank, Steering(), "conditioned", generator).to(dtype)


def steer(layer, kind, coefficients, rank):
    """Give rows their coefficients [B, K] as `Experts.steer` does."""
    each, rest = (rank // 2, rank // 2) if kind == "bilinear" else (1, rank)
    total = coefficients.sum(1, keepdim=True).expand(-1, rest)
    layer.steering.conditioned = torch.cat([coefficients.repeat_interleave(each, 1), total], 1)[:, None]


def formula(layer, kind, c, rank):
    """The update as the papers write it, with gradients."""
    if kind == "bilinear":
        half = rank // 2
        core = sum(c[i] * layer.core[i] for i in range(len(c)))
        first = c.sum() * layer.b[:, half:] @ layer.core[-1] @ layer.a[half:]
        return first + layer.b[:, :half] @ core @ layer.a[:half]
    return layer.b @ torch.diag(torch.cat([layer.scale * c, c.sum() * layer.sigma])) @ layer.a


def set_parameters(layer, **values):
    for name, value in values.items():
        getattr(layer, name).data = torch.tensor(value, dtype=torch.float64)


# W = 1, x = (2, 1), w = (1/4, 3/4). Rows of a batch: w; half of it (alpha = 1/2), where the update is half; and the reference.
ROWS = torch.tensor([[0.25, 0.75], [0.125, 0.375], [0.0, 0.0]], dtype=torch.float64)


def outputs(layer, kind):
    set_parameters(layer.base, weight=[[1.0, 0.0], [0.0, 1.0]])
    steer(layer, kind, ROWS, 2 if kind == "bilinear" else 1)
    return layer(torch.tensor([[[2.0, 1.0]]] * 3, dtype=torch.float64))[:, 0].tolist()


def test_a_bilinear_layer_by_hand():
    # A2 x = (1, 2).x = 4, A1 x = (3, -1).x = 5; W2(w) = 2/4 - 3/4 = -1/4; B2 W2(w) A2 x = (1, 0) * -1, B1 W1 A1 x = (0, 2) * 2.5
    layer = make_layer("bilinear", 2, 2, 2, 2)
    set_parameters(layer, a=[[1.0, 2.0], [3.0, -1.0]], b=[[1.0, 0.0], [0.0, 2.0]], core=[[[2.0]], [[-1.0]], [[0.5]]])
    assert outputs(layer, "bilinear") == [[1.0, 6.0], [1.5, 3.5], [2.0, 1.0]]
    a, b = layer.at(torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64), 1.0)
    assert (b @ a).tolist() == [[-0.25, -0.5], [3.0, -1.0]]  # -1/4 (1, 0)'(1, 2) + 1/2 (0, 2)'(3, -1)


def test_a_singular_layer_by_hand():
    # A x = (4, 1, 5); the values are s w = (1/2, 3/2) and sigma = 1/2, so that B takes (2, 1.5, 2.5) to (2 + 5, 1.5 + 2.5)
    layer = make_layer("singular", 2, 2, 2, 1)
    set_parameters(layer, a=[[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]], b=[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    set_parameters(layer, scale=[2.0], sigma=[0.5])
    assert outputs(layer, "singular") == [[9.0, 5.0], [5.5, 3.0], [2.0, 1.0]]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(OWN), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_rows_and_gradients_are_those_of_the_papers_formula(kind, objectives, half, seed):
    rank, generator = 2 * half, torch.Generator().manual_seed(seed)
    layer = make_layer(kind, 5, 4, objectives, rank, seed=seed)
    for parameter in layer.own():
        parameter.data.normal_(generator=generator)
    c = torch.rand(3, objectives, generator=generator, dtype=torch.float64)
    c[2] = 0
    x = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    steer(layer, kind, c, rank)
    y = layer(x)
    expected = torch.stack([x[i] @ (layer.base.weight + formula(layer, kind, c[i], rank)).T for i in range(3)])
    torch.testing.assert_close(y, expected)
    inputs = [x, *layer.own()]
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    for row in c:  # what is folded into the weight, and exported, is made otherwise than what a forward multiplies with
        update = layer.update(torch.cat([row, row.sum(0, keepdim=True)]), 3.0)
        torch.testing.assert_close(update, 3 * formula(layer, kind, row, rank).detach())
    with torch.no_grad():
        layer.freeze(torch.float64)
        torch.testing.assert_close(layer(x), expected)
        layer.thaw()


@pytest.mark.parametrize(("kind", "conditioning", "shared"), VARIANTS)
def test_per_row_steering_equals_the_merged_model_for_every_row(base, kind, conditioning, shared):
    policy = make_policy(base, conditioning, rank=4, shared=shared, parameterization=kind, takes_alpha=True)
    alphas = np.array([0.0, 0.0, 0.4])
    fused = all_log_probs(policy, WEIGHTINGS, alphas=alphas)
    assert (
        fused - all_log_probs(policy, WEIGHTINGS[::-1].copy(), alphas=alphas)
    ).abs().max() > 1e-3  # w reaches the model
    for row, (weighting, alpha) in enumerate(zip(WEIGHTINGS, alphas, strict=True)):
        plain = copy.deepcopy(policy).materialize(weighting, alpha=alpha)
        assert plain.experts is None and not [name for name, _ in plain.model.named_modules() if name.endswith(".base")]
        torch.testing.assert_close(fused[row], all_log_probs(plain, None)[row], atol=1e-5, rtol=0)
    roles = {(layer.role, type(layer)) for layer in policy.experts.layers.values()}
    assert roles == {("conditioned", KINDS[kind]), *([("shared", LowRankLinear)] * shared)}


@pytest.mark.parametrize(("kind", "conditioning", "shared"), VARIANTS)
def test_a_row_without_coefficients_is_the_reference_bit_for_bit(base, kind, conditioning, shared):
    model, tokenizer = load_base(base, dtype=torch.float32)
    expected = all_log_probs(SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES), None)
    policy = make_policy(base, conditioning, rank=4, shared=shared, parameterization=kind, takes_alpha=True)
    assert torch.equal(all_log_probs(policy, None), expected)
    assert torch.equal(all_log_probs(policy, {"a": 0.3, "b": 0.7}, alphas=1.0), expected)
    assert not torch.allclose(all_log_probs(policy, {"a": 0.3, "b": 0.7}, alphas=0.5), expected, atol=1e-3)
    for layer in policy.experts.layers.values():  # as before training
        layer.b.data.zero_()
    assert torch.equal(all_log_probs(policy, {"a": 0.3, "b": 0.7}), expected)


@pytest.mark.parametrize(("kind", "conditioning", "shared"), VARIANTS)
def test_while_frozen_a_model_computes_the_same(base, kind, conditioning, shared):
    policy = make_policy(base, conditioning, rank=4, shared=shared, parameterization=kind)
    for _ in range(2):  # with a step of training in between
        with torch.no_grad(), policy.experts.frozen():
            frozen = all_log_probs(policy, WEIGHTINGS)
        thawed = all_log_probs(policy, WEIGHTINGS)
        torch.testing.assert_close(frozen, thawed, atol=1e-5, rtol=0)
        for parameter in policy.experts.parameters():
            parameter.data.mul_(0.5)
    assert not torch.allclose(all_log_probs(policy, WEIGHTINGS), thawed, atol=1e-3)


@pytest.mark.parametrize("kind", OWN)
def test_generated_rows_have_a_weighting_each_and_the_probabilities_that_are_scored(llama, kind):
    policy = make_policy(llama, rank=4, parameterization=kind)
    coefficients = policy.coefficients(WEIGHTINGS, 3)
    prompts = policy.tokenize(["one two", "three", "four"], coefficients)
    drawn = policy.rollout(prompts, coefficients, samples=4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scored = policy.score(prompts, drawn.ids, drawn.mask, coefficients, samples=4)
    torch.testing.assert_close(drawn.log_probs, scored, atol=1e-4, rtol=0)
    parameters = list(policy.experts.parameters())
    value = policy.score(prompts, drawn.ids, drawn.mask, coefficients, samples=4).sum()
    assert all(bool(gradient.abs().max() > 0) for gradient in torch.autograd.grad(value, parameters))


@pytest.mark.parametrize(
    ("kind", "parts", "stored"),
    [  # q_proj is 32 to 32, rank 4, two objectives
        ("bilinear", {"a", "b", "core"}, 4 * 64 + 3 * 2 * 2),
        ("singular", {"a", "b", "sigma", "scale"}, 6 * 64 + 4 + 1),
        ("experts", {"a", "b"}, 2 * 4 * 64),
    ],
)
def test_a_saved_policy_is_loaded_as_it_was_and_says_its_kind(llama, tmp_path, kind, parts, stored):
    policy = make_policy(llama, rank=4, parameterization=kind)
    policy.save(tmp_path / "saved", base_model=str(llama))
    assert json.loads((tmp_path / "saved" / "clp.json").read_text())["parameterization"] == kind
    loaded = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(all_log_probs(loaded, WEIGHTINGS), all_log_probs(policy, WEIGHTINGS))
    layer = "model.layers.0.self_attn.q_proj"
    own = {name.removeprefix(f"{layer}."): t for name, t in loaded.experts.tensors().items() if name.startswith(layer)}
    assert own.keys() == parts and sum(tensor.numel() for tensor in own.values()) == stored


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize(("kind", "rank"), [("bilinear", 4), ("singular", 6)])
def test_exports_give_the_same_logits_and_an_adapter_of_no_more_rank_than_the_update(tmp_path, family, kind, rank):
    from peft import PeftModel

    folder = write_model(family, tmp_path / "reference")
    auto = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    arguments = {"input_ids": ids} | ({"decoder_input_ids": ids} if family == "t5" else {})
    policy = make_policy(folder, "attention", rank=4, shared=True, parameterization=kind)
    with torch.no_grad(), policy.experts.steer(torch.tensor([[0.3, 0.7]])):
        expected = policy.model(**arguments).logits
    policy.export({"a": 0.3, "b": 0.7}, tmp_path / "peft", "peft")
    policy.export({"a": 0.3, "b": 0.7}, tmp_path / "hf", "hf")
    adapted = PeftModel.from_pretrained(auto.from_pretrained(folder, dtype=torch.float32), tmp_path / "peft")
    for model in (auto.from_pretrained(tmp_path / "hf", dtype=torch.float32), adapted):
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(**arguments).logits, expected, atol=1e-5, rtol=0)
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert {written["r"], *written["rank_pattern"].values()} == {rank, 4}  # 4: what all weightings share


@pytest.mark.parametrize(
    ("kind", "rank", "message"),
    [
        ("bilinear", 3, "rank=3: bilinear is two terms of half the rank each; set the rank to an even number"),
        ("bilinear", "full", "rank=full: bilinear is low-rank; set the rank to a number"),
        ("singular", "full", "rank=full: singular is low-rank; set the rank to a number"),
    ],
)
def test_ranks_that_cannot_be_are_one_line(llama, kind, rank, message):
    with pytest.raises(UsageError, match=message):
        make_policy(llama, rank=rank, parameterization=kind)
