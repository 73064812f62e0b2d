"""Rewards that count: golden values by hand, and what must hold for any text."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_lightning.config.rewards import LengthReward, RegexReward
from clp_lightning.errors import ClpError
from clp_lightning.rewards.text import Length, Pattern, Readability, Rouge, reading_ease, syllables

TEXTS = st.lists(st.text(alphabet="ab c.\n", max_size=30), min_size=1, max_size=6)


def length(**keys):
    return Length(LengthReward(kind="length", **keys))


def pattern(text, **keys):
    return Pattern(RegexReward(kind="regex", pattern=text, **keys))


def values(reward, *responses):
    return reward(["d"] * len(responses), responses).tolist()


def test_length_golden():
    # distances 2, 1, 0, 1 from three words
    assert values(length(unit="words", target=3), "a", "a b", "a b c", "a b c d") == [-2, -1, 0, -1]
    assert values(length(unit="words", target=3, tolerance=1), "a", "a b", "a b c", "a b c d") == [-1, 0, 0, 0]
    assert values(length(unit="characters", max=4), "", "abcd", " abcdef ") == [0, 0, -2]  # white space around is none


@given(TEXTS, st.integers(1, 20), st.integers(0, 5))
def test_length_is_largest_at_its_target(texts, target, tolerance):
    reward = length(unit="words", target=target, tolerance=tolerance)
    assert values(reward, " ".join(["w"] * target)) == [0]
    for text, value in zip(texts, values(reward, *texts), strict=True):
        assert (value == 0) == (abs(len(text.split()) - target) <= tolerance)
        assert value <= 0


def test_pattern_golden():
    texts = ("a 1", "none", "12 and 3")
    assert values(pattern(r"\d"), *texts) == [1, 0, 1]
    assert values(pattern(r"\d", found=-1.0, otherwise=0.5), *texts) == [-1, 0.5, -1]
    assert values(pattern(r"\d", found=2.0, count=True), *texts) == [2, 0, 6]
    assert values(pattern(r"(?i)please"), "Please do") == [1]


@pytest.mark.parametrize("count", [True, False])
def test_pattern_that_backtracks_for_years_is_one_line(count):
    started = time.monotonic()
    with pytest.raises(ClpError, match=r"the pattern takes more than 1 s on 'aaa.*'; use one without nested repetit"):
        values(pattern(r"(a|a)*(a|a)*(a|a)*(a|a)*(a|aa)+$", count=count), "a" * 2000 + "b")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("bucket", 2), ("the", 1), ("file", 1), ("files", 1), ("named", 1),  # a silent e
        ("table", 2), ("tables", 2), ("enabled", 3), ("boxes", 2), ("changes", 2), ("deleted", 3),  # a spoken one
        ("authorization", 5), ("DELETE", 2), ("xml", 1),
    ],
)  # fmt: skip
def test_syllables(word, count):
    assert syllables(word) == count


def test_reading_ease_golden():
    # 6 words in 1 sentence, syllables 1 + 2 + 1 + 1 + 3 + 2 = 10: 206.835 - 1.015 * 6 - 84.6 * 10 / 6 = 59.745
    assert reading_ease("The bucket holds the deleted objects.") == pytest.approx(59.745)
    # 6 words in 2 sentences: 206.835 - 1.015 * 3 - 84.6 * 10 / 6 = 62.79; the full stop at the end may be missing
    assert reading_ease("The bucket. Holds the deleted objects!") == pytest.approx(62.79)
    assert reading_ease("The cat sat on the mat.") == 100  # 116.145, cut off
    assert reading_ease("Authorization configuration") == 0  # 206.835 - 2.03 - 84.6 * 5 < 0
    assert values(Readability(), "", "12 + 3", "...") == [0, 0, 0]
    assert reading_ease("Use v1.2 of it") == reading_ease("Use v of it")  # the point in a number ends no sentence


@given(st.text(max_size=60))
def test_reading_ease_is_on_its_scale_for_any_text(text):
    assert 0 <= reading_ease(text) <= 100


def test_rouge_golden():
    # rougeL of "deletes the bucket" and "the bucket is gone": common "the bucket", 2/4 and 2/3 -> 2 * 1/3 / (7/6) = 4/7
    # rouge2: one common bigram of 2 and of 3 -> 2 * (1/2 * 1/3) / (1/2 + 1/3) = 2/5; rouge1: two of 3 and of 4 -> 4/7
    for metric, expected in (("rougeL", 4 / 7), ("rouge2", 2 / 5), ("rouge1", 4 / 7)):
        found = Rouge(metric)(["d", "d"], ["the bucket is gone", "x"], ["deletes the bucket"] * 2)
        assert found == pytest.approx(np.array([expected, 0]))
