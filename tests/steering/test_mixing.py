"""Mixtures of policies at each token: at their ends one policy, in between the product that they are defined as."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import DOCUMENTS, OBJECTIVES, make_policy, write_model

from clp_lightning.errors import UsageError
from clp_lightning.steering import mixing
from clp_lightning.weightings import backbones

RESPONSES = ["makes one", "is gone", "a b c d"]


@pytest.fixture(scope="module", params=["llama", "t5"])
def folder(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "reference")


def texts(policy, weighting, **options):
    return policy.generate(DOCUMENTS, weighting, seed=4, **options)


def test_logit_mixing_at_a_vertex_is_that_expert(folder):
    plain, mixed = make_policy(folder), make_policy(folder, mixture=mixing.experts)
    for name in OBJECTIVES:
        assert texts(mixed, {name: 1.0}) == texts(plain, {name: 1.0})
        torch.testing.assert_close(
            mixed.log_probs(DOCUMENTS, RESPONSES, {name: 1.0})[0], plain.log_probs(DOCUMENTS, RESPONSES, {name: 1.0})[0]
        )


def test_logit_mixing_in_between_is_the_normalized_product(folder):
    """The definition, written down for one prompt and one next token at a time."""
    plain, mixed = make_policy(folder), make_policy(folder, mixture=mixing.experts)
    ids, mask = plain.tokenize_responses(RESPONSES)
    shares = {name: share for name, share in zip(OBJECTIVES, (0.3, 0.7), strict=True)}
    with torch.no_grad():
        found = mixed.score(plain.tokenize(DOCUMENTS), ids, mask, mixed.coefficients(shares, 3))
    vocabulary = plain.model.get_output_embeddings().weight.shape[0]
    candidates = torch.arange(vocabulary)
    for row, document in enumerate(DOCUMENTS):
        for t in range(int(mask[row].sum())):
            # every candidate for token t after the true prefix, scored by each expert alone
            longer = torch.cat([ids[row, :t].expand(vocabulary, -1), candidates[:, None]], dim=1)
            product = torch.zeros(vocabulary)
            for name, share in shares.items():
                with torch.no_grad():
                    each = plain.score(
                        plain.tokenize([document]), longer, torch.ones_like(longer, dtype=torch.bool),
                        plain.coefficients({name: 1.0}, 1), samples=vocabulary,
                    )  # fmt: skip
                product += share * each[:, -1]
            expected = product.log_softmax(0)[ids[row, t]]
            torch.testing.assert_close(found[row, t], expected, atol=1e-4, rtol=0)


def test_mixing_with_the_reference_at_the_ends(folder):
    plain, weighting = make_policy(folder), {OBJECTIVES[0]: 0.4, OBJECTIVES[1]: 0.6}
    assert texts(make_policy(folder, mixture=mixing.reference(0.0)), weighting) == texts(plain, weighting)
    assert texts(make_policy(folder, mixture=mixing.reference(1.0)), weighting) == texts(plain, None)


def test_a_scaled_policy_is_one_whose_updates_are_multiplied(folder):
    plain, weighting = make_policy(folder), {OBJECTIVES[0]: 0.4, OBJECTIVES[1]: 0.6}
    scores = {factor: make_policy(folder, mixture=mixing.scaled(factor)).log_probs(DOCUMENTS, RESPONSES, weighting)[0]
              for factor in (0.0, 1.0, 1.5)}  # fmt: skip
    torch.testing.assert_close(scores[0.0], plain.log_probs(DOCUMENTS, RESPONSES, None)[0])
    torch.testing.assert_close(scores[1.0], plain.log_probs(DOCUMENTS, RESPONSES, weighting)[0])
    for name, tensor in plain.experts.tensors().items():
        if name.endswith(".b"):  # an update is B A
            tensor.mul_(1.5)
    torch.testing.assert_close(scores[1.5], plain.log_probs(DOCUMENTS, RESPONSES, weighting)[0], atol=1e-5, rtol=1e-5)


def test_bone_soups_are_the_experts_at_the_coefficients_that_add_their_mixtures_up_to_w(folder):
    # M = (0.7, 0.3; 0.3, 0.7), M' c = w: c = (0.7 w_1 - 0.3 w_2, 0.7 w_2 - 0.3 w_1) / 0.4, so (0.25, 0.75) at (0.4, 0.6)
    plain, mixtures = make_policy(folder), backbones(2, beta=0.7)
    soups = make_policy(folder, mixture=mixing.bone_soups(mixtures, 0.0))
    asked, solved = ({OBJECTIVES[0]: share, OBJECTIVES[1]: 1 - share} for share in (0.4, 0.25))
    torch.testing.assert_close(
        soups.log_probs(DOCUMENTS, RESPONSES, asked)[0], plain.log_probs(DOCUMENTS, RESPONSES, solved)[0]
    )
    # a row each: (0.7, -0.3) / 0.4 at (1, 0); all over 1 - 0.2
    rows = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    members, shares = mixing.bone_soups(mixtures, 0.2)(rows)
    torch.testing.assert_close(members, torch.tensor([[[1.75, -0.75], [0.25, 0.75]]]) / 0.8)
    assert shares.tolist() == [[1, 1]]


@given(st.integers(2, 5), st.floats(0.01, 1), st.floats(0, 0.5), st.integers(0, 10**6))
def test_bone_soups_coefficients_times_mixtures_are_the_weighting(objectives, share, extrapolation, seed):
    mixtures = backbones(objectives, beta=1 / objectives + share * (1 - 1 / objectives))
    w = torch.as_tensor(np.random.default_rng(seed).dirichlet(np.ones(objectives), size=3))
    members, _ = mixing.bone_soups(mixtures, extrapolation)(w)
    torch.testing.assert_close(members[0] @ torch.as_tensor(mixtures) * (1 - extrapolation), w)
    torch.testing.assert_close(members[0].sum(1), torch.ones(3, dtype=w.dtype) / (1 - extrapolation))


def test_several_samples_and_their_log_probabilities_belong_together(folder):
    mixed = make_policy(folder, mixture=mixing.experts)
    coefficients = mixed.coefficients([{OBJECTIVES[0]: s, OBJECTIVES[1]: 1 - s} for s in (0.2, 0.5, 0.9)], 3)
    prompts = mixed.tokenize(DOCUMENTS, coefficients)
    drawn = mixed.rollout(prompts, coefficients, samples=4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scored = mixed.score(prompts, drawn.ids, drawn.mask, coefficients, samples=4)
    torch.testing.assert_close(drawn.log_probs, scored, atol=1e-4, rtol=0)


def test_a_share_of_nothing_leaves_a_policy_out_even_where_it_forbids_a_token():
    from clp_lightning.policy.rollout import _mixed

    logits = torch.tensor(
        [[0.0, 1.0], [-torch.inf, 0.0]]
    )  # two policies of one row; the second forbids the first token
    mixed = _mixed(logits, torch.tensor([[1.0], [0.0]]), samples=1)
    torch.testing.assert_close(mixed, logits[:1].log_softmax(-1))


def test_strengths_outside_of_the_unit_interval_are_one_line():
    with pytest.raises(UsageError, match=r"strength: 1\.5 must be in"):
        mixing.reference(1.5)
    with pytest.raises(UsageError, match=r"factor: -1 must be a number >= 0"):
        mixing.scaled(-1)
    with pytest.raises(UsageError, match=r"extrapolation: 1 must be >= 0 and < 1"):
        mixing.bone_soups(backbones(2, beta=0.7), 1)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_what_the_coefficients_lack_to_one_is_the_references_share(folder, alpha):
    """log pi = sum_i (1 - alpha) w_i log pi_i + alpha log pi_ref, normalized; at alpha 1 the reference policy."""
    plain, mixed = make_policy(folder), make_policy(folder, mixture=mixing.experts, takes_alpha=True)
    ids, mask = plain.tokenize_responses(RESPONSES)
    prompts, weighting = plain.tokenize(DOCUMENTS), {OBJECTIVES[0]: 0.3, OBJECTIVES[1]: 0.7}
    members, shares = mixing.experts(mixed.coefficients(weighting, 3, alpha))
    assert len(members) == (2 if alpha == 0 else 3) and torch.allclose(shares.sum(0), torch.ones(3))
    with torch.no_grad():
        found = mixed.score(prompts, ids, mask, mixed.coefficients(weighting, 3, alpha))
        if alpha == 1.0:
            torch.testing.assert_close(found, plain.score(prompts, ids, mask, None), atol=1e-5, rtol=0)
    first = [plain.model.get_output_embeddings().weight.shape[0], 0]
    candidates = torch.arange(first[0])[:, None]
    every = torch.ones_like(candidates, dtype=torch.bool)
    with torch.no_grad():
        one = plain.tokenize(DOCUMENTS[:1])
        score = lambda c: plain.score(one, candidates, every, c, samples=first[0])[:, 0]  # noqa: E731
        each = [score(plain.coefficients({name: 1.0}, 1)) for name in OBJECTIVES]
        product = (1 - alpha) * (0.3 * each[0] + 0.7 * each[1]) + alpha * score(None)
    torch.testing.assert_close(found[0, 0], product.log_softmax(0)[ids[0, 0]], atol=1e-4, rtol=0)
