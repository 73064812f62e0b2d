"""Words in any script: ROUGE on texts that are not ASCII by hand, and on ASCII what rouge-score itself finds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locations import REPOSITORY
from rouge_score.rouge_scorer import RougeScorer

from clp_lightning.rewards.reward_set import distinct_2
from clp_lightning.rewards.text import Brevity, Rouge
from clp_lightning.rewards.words import Tokenizer, words

CASES = [json.loads(line) for line in (REPOSITORY / "tests/cases/data/rouge.jsonl").read_text().splitlines()]
ASCII = st.text(st.characters(max_codepoint=127), max_size=40)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["response"])
def test_rouge_of_any_script_golden(case):
    found = Rouge("rougeL")(["d"], [case["response"]], [case["reference"]])
    assert found[0] == pytest.approx(case["rougeL"])


@given(ASCII, ASCII, st.sampled_from(["rouge1", "rouge2", "rougeL"]))
def test_on_ascii_rouge_is_that_of_rouge_score(reference, response, metric):
    expected = RougeScorer([metric], use_stemmer=True).score(reference, response)[metric].fmeasure
    assert Rouge(metric)(["d"], [response], [reference]).tolist() == [expected]


@given(ASCII)
def test_company_of_another_script_changes_no_ascii_word(text):
    tokenizer = Tokenizer()
    assert tokenizer.tokenize(f"{text} Ω") == [*tokenizer.tokenize(text), "ω"]
    assert words(text) == text.split() and words(f"{text} Ω") == [*text.split(), "Ω"]


@given(st.text(max_size=40))
def test_any_text_is_like_itself(text):
    assert Rouge("rougeL")(["d"], [text], [text])[0] in (0.0, 1.0)
    assert "".join(words(text)) == "".join(text.split())


def test_scripts_without_spaces_have_more_than_one_word():
    assert words("创建S3桶, then ok") == ["创", "建", "S3", "桶", ",", "then", "ok"]
    assert words("Größe ist’s") == ["Größe", "ist’s"] and words("데이터 삭제") == ["데이터", "삭제"]
    assert Brevity(2)(["d"] * 2, ["删除桶", "删"]).tolist() == [-3, -2]
    assert distinct_2("删除删除删除") == pytest.approx(2 / 5)  # 删除 除删 删除 除删 删除
    assert distinct_2("删除桶") == 1 and distinct_2("a b a b") == pytest.approx(2 / 3)
