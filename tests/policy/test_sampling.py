"""How `generate` samples: nuclei, stop strings and several responses of a prompt."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tiny_models import DOCUMENTS, make_policy, write_model
from transformers import TopPLogitsWarper

from clp_lightning.errors import UsageError
from clp_lightning.policy.rollout import draw, nucleus
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.policy.tokens import cut, first_stop

LEFT = {"a": 0.5, "b": 0.5}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> SteerablePolicy:
    return make_policy(write_model("llama", tmp_path_factory.mktemp("llama") / "reference"))


def shares(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_the_nucleus_is_the_fewest_tokens_of_that_probability():
    # .5 .3 .15 .05: .5 < .79 <= .5 + .3, so two; .8 + .15 >= .85, so three; the first alone has .45; at 0 one stays
    row = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    kept = nucleus(row.repeat(5, 1), shares(0.79, 0.85, 0.45, 0.0, 1.0)) > -torch.inf
    assert kept.tolist() == [
        [False, True, False, True],
        [False, True, True, True],
        [False, True, False, False],
        [False, True, False, False],
        [True, True, True, True],
    ]


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40),
    top_ps=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
)
def test_a_nucleus_is_that_of_transformers(scores, top_ps):
    row = torch.tensor([scores])
    found = nucleus(row.repeat(len(top_ps), 1), shares(*top_ps))
    for top_p, each in zip(top_ps, found, strict=True):
        torch.testing.assert_close(each[None], TopPLogitsWarper(top_p)(torch.zeros(1, 1), row), rtol=0, atol=0)
    assert torch.equal(nucleus(row, shares(1.0)), row)


def test_draws_of_a_nucleus_follow_its_distribution():
    # .5 .3 .15 .05 at .85: three tokens, as .5 : .3 : .15
    row = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    uniform = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = draw(nucleus(row, shares(0.85)).expand(4000, -1), uniform).bincount(minlength=4).numpy()
    assert counts[0] == 0
    assert chisquare(counts[1:], 4000 * np.array([0.5, 0.15, 0.3]) / 0.95).pvalue > 1e-3


def test_top_p_of_1_draws_as_before_and_of_0_is_greedy(policy):
    options = {"seed": 3, "temperature": 1.5}
    plain = policy.generate(DOCUMENTS, LEFT, **options)
    assert policy.generate(DOCUMENTS, LEFT, top_p=1.0, **options) == plain
    assert policy.generate(DOCUMENTS, LEFT, top_p=0.0, **options) == policy.generate(DOCUMENTS, LEFT, temperature=0.0)
    narrow = policy.generate(DOCUMENTS, LEFT, top_p=0.3, **options)
    assert narrow not in (plain, policy.generate(DOCUMENTS, LEFT, temperature=0.0))


def test_log_probabilities_are_the_policys_own_whatever_is_drawn_from(policy):
    prompts, coefficients = policy.tokenize(DOCUMENTS), policy.coefficients(LEFT, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = policy.rollout(prompts, coefficients, samples=2, temperature=0.7, top_p=0.2, generator=generator)
    with torch.no_grad():
        scored = policy.score(prompts, drawn.ids, drawn.mask, coefficients, samples=2)
    torch.testing.assert_close(drawn.log_probs, scored, atol=1e-5, rtol=0)


def test_several_samples_are_rows_of_their_own_in_the_prompts_order(policy):
    rows = [{"a": 1.0}, {"b": 1.0}, LEFT]
    together = policy.generate(DOCUMENTS, rows, samples=3, seed=5)
    assert len(together) == 9 and len(set(together)) > 6
    # the same draws as of nine prompts, each three times
    assert together == policy.generate(
        [text for text in DOCUMENTS for _ in range(3)], [row for row in rows for _ in range(3)], seed=5
    )
    for size in (1, 4, 100):  # neither the batch nor the further prompts change a draw
        assert policy.generate(DOCUMENTS, rows, samples=3, seed=5, batch_size=size) == together
    assert policy.generate(DOCUMENTS[:1], rows[:1], samples=3, seed=5) == together[:3]
    assert policy.generate(DOCUMENTS, rows, samples=1, seed=5) == policy.generate(DOCUMENTS, rows, seed=5)


def test_a_response_ends_before_the_first_stop_string(policy):
    whole = policy.generate(DOCUMENTS, LEFT, seed=1)
    stop = [*[text[2:4] for text in whole if len(text) > 4][:2], "no such text"]
    assert stop[1:]
    cut_short = policy.generate(DOCUMENTS, LEFT, seed=1, stop=stop)
    assert cut_short == [text[: first_stop(text, stop)].rstrip() for text in whole] != whole
    assert policy.generate(DOCUMENTS, LEFT, seed=1, stop=stop[0]) == policy.generate(
        DOCUMENTS, LEFT, seed=1, stop=stop[:1]
    )


def test_the_first_stop_string_is_the_one_that_is_complete_first():
    # "bcd" begins first, and "c" is complete first: what was shown until then does not depend on what follows
    assert cut("abcd", ["bcd", "c"]) == ("ab", True)
    assert cut("abcd", ["bc", "c"]) == ("a", True)  # both are complete at once: the longer
    assert cut(" a b\n\nHuman: c", ["\nHuman", "x"]) == ("a b", True)
    assert cut("\n a b \n", ["\nHuman"]) == ("a b", False)
    assert cut("\na\n", ["\n"]) == ("a", True)  # not the one in front, which is no part of the answer
    assert cut("", ["a"]) == ("", False) and cut(" a ", []) == ("a", False)


@given(
    text=st.text("ab \n", max_size=30), stop=st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_what_follows_a_stop_string_changes_nothing(text, stop):
    at = first_stop(text, stop)
    prefixes = [first_stop(text[:end], stop) for end in range(len(text) + 1)]
    assert next((place for place in prefixes if place is not None), None) == at


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 1.5}, "top_p: expected a probability from 0 to 1, but found 1.5"),
        ({"top_p": float("nan")}, "top_p: expected a probability from 0 to 1, but found nan"),
        ({"stop": ["a", ""]}, "stop: an empty text would end every answer before it begins; leave it out"),
        ({"stop": ""}, "stop: an empty text"),
        ({"samples": 0}, "samples: expected at least 1, but found 0"),
    ],
)
def test_bad_settings_are_one_line(policy, options, message):
    with pytest.raises(UsageError, match=message):
        policy.generate(DOCUMENTS, LEFT, **options)
