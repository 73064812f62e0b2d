"""What a judge's answer says: the forms in which models write a letter, and what must not be taken for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locations import REPOSITORY

from clp_lightning.rewards.verdicts import LONGEST_QUOTE, read

CASES = [json.loads(line) for line in (REPOSITORY / "tests/cases/data/verdicts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["answer"])[:50])
def test_a_verdict_or_why_there_is_none(case):
    found = read(case["answer"], cut=case.get("cut", False))
    assert (found.verdict, found.why) == (case.get("verdict"), case.get("why", ""))


@given(st.text(alphabet="ABTIEabtie<>/think* \n.:()[]{}\\\"'answer", max_size=60), st.booleans())
def test_any_answer_is_read_or_quoted_in_a_line(answer, cut):
    found = read(answer, cut=cut)
    assert found.verdict in ("A", "B", "TIE") if not found.why else found.verdict is None
    assert "\n" not in found.quote


@given(st.text(alphabet="AB .\n:*answer", max_size=40), st.sampled_from(["A", "B", "TIE"]))
def test_thoughts_decide_nothing(thoughts, letter):
    assert read(f"<think>{thoughts}</think>\nAnswer: {letter}").verdict == letter


def test_of_a_long_answer_both_ends_are_quoted():
    quote = read("x" * 100 + "\n" + "y" * 100).quote
    assert quote == repr("x" * 40 + " ... " + "y" * 40) and len(quote) < LONGEST_QUOTE + 10
