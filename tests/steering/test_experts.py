"""The algebra of experts, for every variant of CLP and every model family: float32, against merged plain models."""

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import GENERATION, OBJECTIVES, all_log_probs, make_policy
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, OPTForCausalLM, PhiForCausalLM

from clp_lightning.config.data import Layers
from clp_lightning.errors import UsageError
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.conditioned import FullRankLinear, LowRankProduct
from clp_lightning.steering.experts import Experts, run_length

VARIANTS = [
    ("full", 3, False), ("attention", 3, False), ("logits", 3, False), ("attention", 3, True), ("logits", 2, True),
    ("none", 3, True), ("full", "full", False), ("attention", "full", True),
    ("full", 3, "everywhere"), ("attention", "full", "everywhere"),
]  # fmt: skip


@pytest.mark.parametrize(("conditioning", "rank", "shared"), VARIANTS)
def test_per_row_averaging_equals_the_merged_model_for_every_row(base, conditioning, rank, shared):
    policy = make_policy(base, conditioning, rank=rank, shared=shared, takes_alpha=True)
    weightings, alphas = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]]), np.array([0.0, 0.0, 0.4])
    fused = all_log_probs(policy, weightings, alphas=alphas)
    for row, (weighting, alpha) in enumerate(zip(weightings, alphas, strict=True)):
        plain = copy.deepcopy(policy).materialize(weighting, alpha=alpha)
        assert plain.experts is None and not [name for name, _ in plain.model.named_modules() if name.endswith(".base")]
        torch.testing.assert_close(fused[row], all_log_probs(plain, None)[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("conditioning", "shared"), [("full", False), ("attention", True)])
def test_full_rank_experts_that_are_merged_per_group_are_those_averaged_per_row(
    base, conditioning, shared, monkeypatch
):
    policy = make_policy(base, conditioning, rank="full", shared=shared)
    coefficients = policy.coefficients(np.array([[0.2, 0.8], [0.9, 0.1]]), 2)
    prompts = policy.tokenize(["one two", "three"], coefficients)
    ids = torch.randint(3, 9, (2 * 24, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    parameters = list(policy.experts.parameters())

    def scored() -> tuple[torch.Tensor, list[torch.Tensor]]:
        log_probs = policy.score(prompts, ids, mask, coefficients, samples=24)
        return log_probs, torch.autograd.grad(log_probs.mean(), parameters)

    merged = []
    plain = FullRankLinear.merged
    monkeypatch.setattr(FullRankLinear, "merged", lambda self, *rest: merged.append(self) or plain(self, *rest))
    per_group, gradients = scored()
    assert {layer.role for layer in merged} == {layer.role for layer in policy.experts.layers.values()}
    monkeypatch.setattr(FullRankLinear, "merges", lambda self, x: False)
    count = len(merged)
    per_row, expected = scored()
    assert len(merged) == count  # nothing was merged
    torch.testing.assert_close(per_group, per_row, atol=1e-5, rtol=0)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("conditioning", "rank", "shared"), VARIANTS)
def test_while_frozen_a_model_computes_the_same_and_stays_itself(base, conditioning, rank, shared):
    policy = make_policy(base, conditioning, rank=rank, shared=shared)
    weightings = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters()}
    tied = {parameter.data_ptr() for parameter in policy.model.parameters()}
    thawed = all_log_probs(policy, weightings)

    def frozen(policy):
        with torch.no_grad(), policy.experts.frozen():
            return all_log_probs(policy, weightings)

    torch.testing.assert_close(frozen(policy), thawed, atol=1e-5, rtol=0)
    with torch.no_grad():  # a step of training in between
        for parameter in policy.experts.parameters():
            parameter.mul_(0.5)
    changed = all_log_probs(policy, weightings)
    assert not torch.allclose(changed, thawed, atol=1e-3)
    torch.testing.assert_close(frozen(policy), changed, atol=1e-5, rtol=0)
    torch.testing.assert_close(frozen(copy.deepcopy(policy)), changed, atol=1e-5, rtol=0)
    policy.model.double().float()  # every parameter is somewhere else, as after a move to another device
    torch.testing.assert_close(frozen(policy), changed, atol=1e-5, rtol=0)
    assert len({parameter.data_ptr() for parameter in policy.model.parameters()}) == len(tied)
    experts = {id(parameter) for parameter in policy.experts.parameters()}
    for name, parameter in policy.model.named_parameters():
        assert id(parameter) in experts or torch.equal(parameter, before[name])


def test_gradients_of_the_low_rank_product_are_those_of_its_single_steps():
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    layer = torch.nn.Linear(5, 4, bias=True, dtype=torch.float64).requires_grad_(False)
    x, a, b = (draw(*size, requires_grad=True) for size in ((2, 3, 5), (6, 5), (4, 6)))
    scale = draw(2, 1, 6)
    expected = layer(x) + ((x @ a.T) * scale) @ b.T
    y = LowRankProduct.apply(x, a, b, scale, layer)
    torch.testing.assert_close(y, expected)
    direction = draw(2, 3, 4)
    ours, theirs = (torch.autograd.grad(out, (x, a, b), direction) for out in (y, expected))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda *inputs: LowRankProduct.apply(*inputs, scale, layer), (x, a, b))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_runs_of_one_length_are_found(lengths):
    groups = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert run_length(groups) == (lengths[0] if len(set(lengths)) == 1 else 1)


def test_a_row_without_coefficients_is_the_reference_and_so_is_alpha_1(base):
    model, tokenizer = load_base(base, dtype=torch.float32)
    expected = all_log_probs(SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES), None)
    policy = make_policy(base, "attention", shared=True, prompted=True, takes_alpha=True)
    assert torch.equal(all_log_probs(policy, None), expected)
    assert torch.equal(all_log_probs(policy, {"a": 0.3, "b": 0.7}, alphas=1.0), expected)  # bit for bit
    assert not torch.allclose(all_log_probs(policy, {"a": 0.3, "b": 0.7}, alphas=0.5), expected, atol=1e-3)


@pytest.mark.parametrize("conditioning", ["full", "attention", "logits"])
def test_a_one_hot_weighting_gives_that_expert_alone(base, conditioning):
    policy = make_policy(base, conditioning)
    before = all_log_probs(policy, {"b": 1.0})
    for layer in policy.experts.layers.values():  # the other expert may be anything
        layer.a.data[:3] = 7.0
        layer.b.data[:, :3] = -3.0
    torch.testing.assert_close(all_log_probs(policy, {"b": 1.0}), before, atol=1e-6, rtol=0)


def test_equal_experts_make_the_weighting_irrelevant(base):
    policy = make_policy(base)
    assert (
        all_log_probs(policy, {"a": 1.0}) - all_log_probs(policy, {"b": 1.0})
    ).abs().max() > 1e-3  # w reaches the model
    for layer in policy.experts.layers.values():
        layer.a.data[3:] = layer.a.data[:3]
        layer.b.data[:, 3:] = layer.b.data[:, :3]
    torch.testing.assert_close(all_log_probs(policy, {"a": 1.0}), all_log_probs(policy, {"b": 1.0}), atol=1e-5, rtol=0)


@settings(max_examples=10)
@given(st.permutations(range(3)), st.tuples(*[st.floats(0.01, 1)] * 3))
def test_permuting_objectives_and_weightings_together_changes_nothing(llama, order, shares):
    weighting = np.tile(np.array(shares) / sum(shares), (3, 1))
    policy = make_policy(llama, rank=2, objectives=("a", "b", "c"))
    before = all_log_probs(policy, weighting)
    index = torch.tensor([2 * expert + unit for expert in order for unit in range(2)])
    for layer in policy.experts.layers.values():
        layer.a.data = layer.a.data[index]
        layer.b.data = layer.b.data[:, index]
    torch.testing.assert_close(all_log_probs(policy, weighting[:, list(order)]), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objectives", [("a",), ("a", "b", "c", "d")])
def test_any_number_of_objectives(llama, objectives):
    policy = make_policy(llama, objectives=objectives)
    assert all_log_probs(policy, dict.fromkeys(objectives, 1 / len(objectives))).shape[0] == 3


@pytest.mark.parametrize(("rank", "shared"), [(2, False), ("full", False), (2, True)])
def test_gradient_agrees_with_finite_differences(llama, rank, shared):
    policy = make_policy(llama, "attention", rank=rank, shared=shared)
    policy.model.double()
    policy.experts.double()
    policy.experts.dtype = torch.float64
    ids, mask = policy.tokenize_responses(["makes one", "is gone", "a b c d"])
    coefficients = policy.coefficients({"a": 0.3, "b": 0.7}, 3)
    prompts = policy.tokenize(["one", "two three", "four"])

    def value():
        return policy.score(prompts, ids, mask, coefficients).sum()

    value().backward()
    names = ["model.layers.0.self_attn.q_proj"] + ["model.layers.1.mlp.up_proj"] * shared
    for parameter in [p for name in names for p in policy.experts.layers[name].own()]:
        index, step = (1, 1), 1e-3  # norms compute in float32, which leaves noise of about 1e-6 / step
        parameter.data[index] += step
        above = value().item()
        parameter.data[index] -= 2 * step
        below = value().item()
        parameter.data[index] += step
        assert parameter.grad[index].item() == pytest.approx((above - below) / (2 * step), abs=1e-3, rel=1e-3)


SETS = ("full", "attention", "logits", "none", "blocks")


def test_conditioned_sets_cover_the_layers_they_name(base):
    counts = {name: len(make_policy(base, name, shared=name == "none").experts.layers) for name in SETS}
    t5_layers = 4 * 2 + 8 * 2  # attention: 4 in each of 2 encoder layers, 8 in each of 2 decoder layers
    decoder_only = {
        "full": 15,
        "attention": 8,
        "logits": 1,
        "none": 15,
        "blocks": 14,
    }  # 2 layers of 7, and the output layer
    expected = {"llama": decoder_only, "gemma": decoder_only}
    for family, mlp in (("t5", 3), ("t5_tied", 2)):  # gated or not
        blocks = t5_layers + 4 * mlp
        expected[family] = {
            "full": blocks + 1,
            "attention": t5_layers,
            "logits": 1,
            "none": blocks + 1,
            "blocks": blocks,
        }
    assert counts == expected[base.parent.name[:-1]]  # without the number that mktemp adds


def test_theta_rest_is_shared_by_all_weightings(llama):
    policy = make_policy(llama, "logits", shared=True)
    roles = {name: (layer.role, layer.experts) for name, layer in policy.experts.layers.items()}
    assert roles["lm_head"] == ("conditioned", 2)
    assert roles["model.layers.0.mlp.up_proj"] == ("shared", 1)
    for layer in policy.experts.layers.values():  # with the output layer's experts silent, only theta_rest is left
        if layer.role == "conditioned":
            layer.b.data.zero_()
    one, other = all_log_probs(policy, {"a": 1.0}), all_log_probs(policy, {"b": 1.0})
    assert torch.equal(one, other) and not torch.allclose(one, all_log_probs(policy, None), atol=1e-3)


def test_prompted_policy_reads_its_weighting(llama):
    policy = make_policy(llama, "none", shared=True, prompted=True)
    coefficients = policy.coefficients({"a": 0.25, "b": 0.75}, 1)
    text = policy.tokenizer.decode(policy.tokenize(["list: all"], coefficients).ids[0])
    assert text == "a 0.25, b 0.75\nlist: all\nSummary:"
    assert policy.tokenizer.decode(policy.tokenize(["list: all"]).ids[0]) == "list: all\nSummary:"
    assert (all_log_probs(policy, {"a": 1.0}) - all_log_probs(policy, {"b": 1.0})).abs().max() > 1e-4


def test_bad_experts_are_one_line(llama):
    with pytest.raises(UsageError, match="both must be >= 1"):
        make_policy(llama, rank=0)
    model, _ = load_base(llama)
    with pytest.raises(UsageError, match="both must be >= 1"):
        Experts(model, conditioning="full", experts=0, rank=1)
    with pytest.raises(UsageError, match="no linear layer of the set"):
        Experts(torch.nn.Sequential(torch.nn.Linear(2, 2)), conditioning="attention", experts=1, rank=1)
    for conditioning in ("full", "none"):  # GPT-2's layers are no linear ones; its output layer is
        with pytest.raises(UsageError, match=r"beside its output layer .* it has lm_head"):
            gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
            Experts(gpt2, conditioning=conditioning, experts=2, rank=1, shared=True)
    with pytest.raises(UsageError, match="alpha: this policy was trained at one KL strength"):
        make_policy(llama).coefficients({"a": 1.0}, 1, 0.5)
    for alphas in (1.5, [0.1, 0.2], float("nan")):
        with pytest.raises(UsageError, match="alpha: "):
            make_policy(llama, takes_alpha=True).coefficients({"a": 1.0}, 1, alphas)


@pytest.mark.parametrize(
    ("kind", "attention", "full"),
    [  # a block of each: query_key_value and dense, h_to_4h and back; q, k, v, out, fc1, fc2; and the output layer
        (GPTNeoXForCausalLM, {"query_key_value", "dense"}, 5),
        (OPTForCausalLM, {"q_proj", "k_proj", "v_proj", "out_proj"}, 7),
        (PhiForCausalLM, {"q_proj", "k_proj", "v_proj", "dense"}, 7),
    ],
)
def test_layers_of_other_families_are_found_by_their_place(kind, attention, full):
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"ffn_dim": 16, "word_embed_proj_dim": 16} if kind is OPTForCausalLM else {"intermediate_size": 16}
    model = kind(kind.config_class(**small, **more))
    found = Experts(model, conditioning="attention", experts=1, rank=1).layers
    assert {name.rsplit(".", 1)[1] for name in found} == attention
    assert len(Experts(kind(kind.config_class(**small, **more)), conditioning="full", experts=1, rank=1).layers) == full


def test_named_layers_replace_the_found_ones(llama):
    model, _ = load_base(llama)
    named = Layers(attention=r".*\.q_proj", mlp=r".*\.up_proj", logits="lm_head")
    experts = Experts(model, conditioning="full", experts=1, rank=1, layers=named)
    assert {name.rsplit(".", 1)[-1] for name in experts.layers} == {"q_proj", "up_proj", "lm_head"}
    with pytest.raises(UsageError, match="layers: not a regular expression"):
        Experts(model, conditioning="full", experts=1, rank=1, layers=Layers(attention="(", mlp="", logits=""))


def test_a_model_without_such_layers_says_what_it_has():
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    nothing = Layers(attention="none", mlp="none", logits="none")
    with pytest.raises(UsageError, match=r"name its layers .*; it has gpt_neox.layers.N.attention.query_key_value"):
        Experts(model, conditioning="full", experts=1, rank=1, layers=nothing)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_frozen_layers_output_is_aligned_for_attention_on_a_gpu(rank, llama):
    # seen on an H200: with rank 3 and two experts a row had 38 numbers, and attention refused it ("not correctly aligned")
    policy = make_policy(llama, rank=rank)
    layer = policy.experts.layers["model.layers.0.self_attn.q_proj"]
    with policy.experts.steer(policy.coefficients({"a": 1.0}, 2)), policy.experts.frozen():
        frozen = layer(torch.ones(2, 3, layer.base.in_features))
        assert frozen.stride(1) % 8 == 0
    with policy.experts.steer(policy.coefficients({"a": 1.0}, 2)):
        torch.testing.assert_close(frozen, layer(torch.ones(2, 3, layer.base.in_features)))
