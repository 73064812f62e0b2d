"""Rollouts, scoring, saving and use of the policy, on tiny models of every family in float32."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny_models import DOCUMENTS, FAMILIES, GENERATION, OBJECTIVES, all_log_probs, make_policy, write_model

from clp_lightning.errors import ClpError, UsageError
from clp_lightning.policy import rollout
from clp_lightning.policy.steerable import SteerablePolicy


@pytest.fixture(scope="module", params=FAMILIES)
def base_folder(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "reference")


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
        rollout.draw(scores, torch.tensor([[u]], dtype=torch.float64)).item()
        for u in (0.0, 0.09, 0.11, 0.29, 0.31, 1.0)
    ]
    assert drawn == [0, 0, 1, 1, 2, 2]
    impossible = torch.tensor([[-torch.inf, 0.0, 0.0]])
    assert rollout.draw(impossible, torch.zeros(1, 1, dtype=torch.float64)).item() == 1


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
    pooled = [x[: len(x) - (pooled[1][-1] == 0)] for x in pooled]
    assert chisquare(pooled[0], pooled[1] * pooled[0].sum() / pooled[1].sum()).pvalue > 1e-3


def test_padding_does_not_change_a_row(base_folder):
    policy = make_policy(base_folder)
    together = policy.generate(DOCUMENTS, {"a": 0.5, "b": 0.5}, temperature=0)
    alone = [policy.generate([text], {"a": 0.5, "b": 0.5}, temperature=0)[0] for text in DOCUMENTS]
    assert together == alone


def test_greedy_generation_equals_transformers_own(base_folder):
    policy = make_policy(base_folder)
    plain = policy.materialize({"a": 1.0})
    tokens = plain.tokenize(DOCUMENTS[:1])
    ids = plain.model.generate(
        input_ids=tokens.ids, attention_mask=tokens.mask.long(), max_new_tokens=6, do_sample=False
    )[0, 1 if plain.model.config.is_encoder_decoder else tokens.ids.shape[1] :]
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


def test_a_long_prompt_that_is_refused_has_its_number_among_all(tmp_path):
    policy = make_policy(write_model("llama", tmp_path / "reference"))
    policy.generation = policy.template.generation = GENERATION.model_copy(update={"long_prompts": "refuse"})
    with pytest.raises(UsageError, match=r"^prompt 4: \d+ of its \d+ tokens do not fit"):
        policy.generate([*DOCUMENTS, "list all " * 40], None, batch_size=2)


def test_bad_use_is_one_line(base_folder):
    policy = make_policy(base_folder)
    with pytest.raises(UsageError, match="prompt 2 is empty"):
        policy.generate(["a", "  "], {"a": 1.0})
    with pytest.raises(UsageError, match="no prompts"):
        policy.generate([], {"a": 1.0})
    with pytest.raises(UsageError, match="3 prompts but weightings of shape"):
        policy.generate(DOCUMENTS, [{"a": 1.0}])
    if not policy.model.config.is_encoder_decoder:  # T5's relative positions know no limit
        policy.model.config.max_position_embeddings = 45
        with pytest.raises(UsageError, match="prompt and response of 46 tokens exceed the model's context of 45"):
            SteerablePolicy(policy.model, policy.tokenizer, GENERATION, objectives=OBJECTIVES)


def test_merging_a_tied_output_layer_leaves_the_embedding(base_folder):
    policy = make_policy(base_folder, "logits")
    embedding = copy.deepcopy(policy.model.get_input_embeddings().weight)
    policy.materialize({"a": 1.0})
    torch.testing.assert_close(policy.model.get_input_embeddings().weight, embedding)
    assert policy.model.config.tie_word_embeddings is False
