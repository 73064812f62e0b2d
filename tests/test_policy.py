"""Experts, rollouts and the policy on a tiny Llama in float32."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from clp_lightning import rollout
from clp_lightning.config import Generation, RandomModel
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.experts import CONDITIONED_SETS, Experts
from clp_lightning.policy import SteerablePolicy, hardware_dtype, load_base

DOCUMENTS = ["create bucket: makes a bucket", "delete it: removes the whole thing for good and for ever", "list: all"]
GENERATION = Generation(max_prompt_tokens=40, max_new_tokens=6, template="{document}\nSummary:")
OBJECTIVES = ("a", "b")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    from clp_lightning.base import write_random

    folder = tmp_path_factory.mktemp("models") / "reference"
    write_random(RandomModel(kind="random", vocabulary=300, hidden=32, layers=2, heads=2), DOCUMENTS * 5, 0, folder)
    return folder


def make_policy(folder, conditioning="full", rank=3, experts=2):
    model, tokenizer = load_base(folder, dtype=torch.float32)
    added = Experts(model, conditioning=conditioning, experts=experts, rank=rank, seed=1)
    torch.manual_seed(5)
    for layer in added.layers.values():  # experts that matter: B starts at zero
        layer.b.data.normal_(std=0.2)
    return SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES[:experts], experts=added)


def all_log_probs(policy, weightings):
    with torch.no_grad():
        return policy.log_probs(DOCUMENTS, ["makes one", "is gone", "a b c d"], weightings)[0]


@pytest.mark.parametrize("conditioning", ["full", "attention", "logits"])
def test_per_row_averaging_equals_the_merged_model_for_every_row(base_folder, conditioning):
    policy = make_policy(base_folder, conditioning)
    weightings = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    fused = all_log_probs(policy, weightings)
    for row, weighting in enumerate(weightings):
        merged = make_policy(base_folder, conditioning)
        merged.experts.load_tensors(policy.experts.tensors())
        merged.experts.merge(merged.model, torch.tensor(weighting, dtype=torch.float32))
        plain = SteerablePolicy(merged.model, merged.tokenizer, GENERATION, objectives=OBJECTIVES)
        torch.testing.assert_close(fused[row], all_log_probs(plain, None)[row], atol=1e-5, rtol=0)


def test_a_row_without_coefficients_is_the_reference(base_folder):
    model, tokenizer = load_base(base_folder, dtype=torch.float32)
    reference = SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES)
    expected = all_log_probs(reference, None)
    policy = make_policy(base_folder)
    torch.testing.assert_close(all_log_probs(policy, None), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(all_log_probs(policy, np.zeros((3, 2))), expected, atol=1e-6, rtol=0)


def test_weighting_reaches_the_model_and_equal_experts_ignore_it(base_folder):
    policy = make_policy(base_folder)
    one, other = all_log_probs(policy, {"a": 1.0}), all_log_probs(policy, {"b": 1.0})
    assert (one - other).abs().max() > 1e-2
    for layer in policy.experts.layers.values():  # copy expert a over expert b
        layer.a.data[3:] = layer.a.data[:3]
        layer.b.data[:, 3:] = layer.b.data[:, :3]
    torch.testing.assert_close(all_log_probs(policy, {"a": 1.0}), all_log_probs(policy, {"b": 1.0}), atol=1e-5, rtol=0)


def test_permuting_objectives_and_weightings_together_changes_nothing(base_folder):
    policy = make_policy(base_folder)
    before = all_log_probs(policy, np.tile([0.3, 0.7], (3, 1)))
    for layer in policy.experts.layers.values():
        layer.a.data = layer.a.data[[3, 4, 5, 0, 1, 2]]
        layer.b.data = layer.b.data[:, [3, 4, 5, 0, 1, 2]]
    torch.testing.assert_close(all_log_probs(policy, np.tile([0.7, 0.3], (3, 1))), before, atol=1e-5, rtol=0)


def test_gradient_agrees_with_finite_differences(base_folder):
    policy = make_policy(base_folder, rank=2)
    policy.model.double()
    policy.experts.double()
    policy.experts.dtype = torch.float64
    ids, mask = policy.tokenize_responses(["makes one", "is gone", "a b c d"])
    prompts, coefficients = policy.tokenize(DOCUMENTS), policy.coefficients({"a": 0.3, "b": 0.7}, 3)

    def value():
        return policy.score(prompts, ids, mask, coefficients).sum()

    layer = policy.experts.layers["model.layers.0.mlp.up_proj"]
    value().backward()
    step = 1e-4
    for parameter, index in ((layer.a, (0, 3)), (layer.b, (5, 1))):
        parameter.data[index] += step
        above = value().item()
        parameter.data[index] -= 2 * step
        below = value().item()
        parameter.data[index] += step
        # scores are float32 at the last step, so the difference carries about 1e-6 / step of noise
        assert parameter.grad[index].item() == pytest.approx((above - below) / (2 * step), abs=5e-2, rel=2e-2)


def test_shared_prefill_scores_like_rows_of_their_own(base_folder):
    policy = make_policy(base_folder)
    weightings = np.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    coefficients = policy.coefficients(weightings, 3)
    responses = policy.rollout(
        policy.tokenize(DOCUMENTS), coefficients, samples=2, generator=torch.Generator().manual_seed(0)
    )
    shared = policy.score(policy.tokenize(DOCUMENTS), responses.ids, responses.mask, coefficients, samples=2)
    alone = policy.score(
        policy.tokenize([text for text in DOCUMENTS for _ in range(2)]),
        responses.ids,
        responses.mask,
        coefficients.repeat_interleave(2, dim=0),
    )
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared.detach(), responses.log_probs, atol=1e-5, rtol=0)


def test_draw_inverts_the_distribution_function():
    # probabilities .1 .2 .7 -> distribution function .1 .3 1: the token is the first whose value lies above u
    scores = torch.tensor([[0.1, 0.2, 0.7]]).log()
    drawn = [
        rollout._draw(scores, torch.tensor([[u]], dtype=torch.float64)).item()
        for u in (0.0, 0.09, 0.11, 0.29, 0.31, 1.0)
    ]
    assert drawn == [0, 0, 1, 1, 2, 2]
    impossible = torch.tensor([[-torch.inf, 0.0, 0.0]])
    assert rollout._draw(impossible, torch.zeros(1, 1, dtype=torch.float64)).item() == 1


def test_sampled_tokens_follow_the_policy(base_folder):
    policy = make_policy(base_folder)
    prompts, coefficients = policy.tokenize(DOCUMENTS[:1]), policy.coefficients({"a": 0.5, "b": 0.5}, 1)
    sampled = policy.rollout(
        prompts, coefficients, samples=4000, max_new_tokens=1, generator=torch.Generator().manual_seed(0)
    )
    vocabulary = torch.arange(len(policy.tokenizer))[:, None]
    with torch.no_grad():
        log_probs = policy.score(prompts, vocabulary, torch.ones_like(vocabulary, dtype=torch.bool), coefficients,
                                 samples=len(vocabulary))  # fmt: skip
    expected = 4000 * log_probs[:, 0].exp().double()
    counts = sampled.ids[:, 0].bincount(minlength=len(vocabulary)).double()
    rare = expected < 5  # chi-square wants five expected each: pool the rest
    pooled = [torch.cat([x[~rare], x[rare].sum()[None]]).numpy() for x in (counts, expected)]
    assert chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > 1e-3


def test_padding_does_not_change_a_row(base_folder):
    policy = make_policy(base_folder)
    together = policy.generate(DOCUMENTS, {"a": 0.5, "b": 0.5}, temperature=0)
    alone = [policy.generate([text], {"a": 0.5, "b": 0.5}, temperature=0)[0] for text in DOCUMENTS]
    assert together == alone


def test_greedy_generation_equals_transformers_own(base_folder):
    policy = make_policy(base_folder)
    policy.experts.merge(policy.model, torch.tensor([1.0, 0.0]))
    plain = SteerablePolicy(policy.model, policy.tokenizer, GENERATION, objectives=OBJECTIVES)
    tokens = plain.tokenize(DOCUMENTS[:1])
    ids = plain.model.generate(
        input_ids=tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=6, do_sample=False
    )[0, tokens.ids.shape[1] :]
    assert plain.decode(ids[None]) == plain.generate(DOCUMENTS[:1], None, temperature=0)


def test_save_and_load_give_the_same_policy(base_folder, tmp_path):
    policy = make_policy(base_folder)
    folder = base_folder.parent / "saved"
    policy.save(folder, base_model="../reference", method="clp-full")
    loaded = SteerablePolicy.from_pretrained(folder, dtype=torch.float32)
    assert loaded.objectives == OBJECTIVES
    weighting = {"a": 0.4, "b": 0.6}
    torch.testing.assert_close(all_log_probs(loaded, weighting), all_log_probs(policy, weighting), atol=1e-6, rtol=0)
    (folder / "experts.safetensors").write_bytes(b"broken")
    with pytest.raises(ClpError, match=r"cannot read .*experts.safetensors"):
        SteerablePolicy.from_pretrained(folder)
    with pytest.raises(ClpError, match="no model folder at"):
        SteerablePolicy.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ClpError, match="cannot read"):
        SteerablePolicy.from_pretrained(tmp_path)


def test_long_documents_keep_the_template(base_folder):
    policy = make_policy(base_folder)
    prompts = policy.tokenize(["word " * 200])
    assert prompts.ids.shape[1] == GENERATION.max_prompt_tokens
    assert policy.tokenizer.decode(prompts.ids[0]).endswith("\nSummary:")


def test_bad_use_is_one_line(base_folder):
    policy = make_policy(base_folder)
    with pytest.raises(UsageError, match="prompt 2 is empty"):
        policy.generate(["a", "  "], {"a": 1.0})
    with pytest.raises(UsageError, match="no prompts"):
        policy.generate([], {"a": 1.0})
    with pytest.raises(UsageError, match="3 prompts but weightings of shape"):
        policy.generate(DOCUMENTS, [{"a": 1.0}])
    with pytest.raises(UsageError, match="both must be >= 1"):
        make_policy(base_folder, rank=0)
    with pytest.raises(UsageError, match="has no linear layer of the set"):
        Experts(torch.nn.Sequential(torch.nn.Linear(2, 2)), conditioning="full", experts=1, rank=1)


def test_conditioned_sets_cover_the_layers_they_name(base_folder):
    counts = {name: len(make_policy(base_folder, name).experts.layers) for name in CONDITIONED_SETS}
    assert counts == {"full": 15, "attention": 8, "logits": 1, "blocks": 14}  # 2 layers of 7, and the output layer


def test_merging_a_tied_output_layer_leaves_the_embedding(base_folder):
    policy = make_policy(base_folder, "logits")
    embedding = copy.deepcopy(policy.model.get_input_embeddings().weight)
    policy.experts.merge(policy.model, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(policy.model.get_input_embeddings().weight, embedding)
    assert policy.model.config.tie_word_embeddings is False


def test_hardware_dtype_is_one_that_torch_computes():
    assert hardware_dtype() in (torch.bfloat16, torch.float32)
