"""Pairs from rows with a number for each answer, as HelpSteer has them: by hand, and rows that cannot be used."""

import json
from itertools import combinations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from locations import REPOSITORY

from clp_lightning.config.data import Scores
from clp_lightning.config.parameters import load_config
from clp_lightning.data import check, own_rows, pairs
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.project.dvc_yaml import adapt

CASES = REPOSITORY / "tests/cases/data"
BOAT = "How do I sell a boat?"


def scores(source="helpsteer.jsonl", **options) -> Scores:
    values = {
        "kind": "scores", "source": source, "subset": None, "prompt": "prompt", "response": "response",
        "score": "helpfulness", "heldout": 0.3, "limit": None, "skip_bad_rows": False,
    }  # fmt: skip
    return Scores(**(values | options))


def found(config, folder=CASES, seed=0):
    parts, problems = own_rows.pairs(config, seed, folder)
    return [pair for part in parts.values() for pair in part], parts, problems


def test_two_answers_to_a_prompt_are_a_pair_where_their_scores_differ():
    made, _, _ = found(scores())
    assert {(pair.chosen, pair.rejected) for pair in made} == {
        ("Keep it dry.", "In the rain."), ("Keep it dry.", "In the cellar, dry."),
        ("In the cellar, dry.", "In the rain."),
    }  # fmt: skip
    made, _, _ = found(scores(score="correctness"))  # another column is another reward
    assert {(pair.chosen, pair.rejected) for pair in made} == {
        ("In the cellar, dry.", "Keep it dry."), ("In the cellar, dry.", "In the rain."),
        ("Write an advert.", "Ask around."),
    }  # fmt: skip
    assert {pair.document for pair in made} == {"how do I store  a kettle?", BOAT}


def test_rows_that_cannot_be_used_are_named():
    _, _, problems = found(scores())
    assert [(problem.place, problem.text) for problem in problems] == [
        ("helpsteer.jsonl:7", "the same prompt and answer as another row (helpsteer.jsonl:4)"),
        ("helpsteer.jsonl:8", "'helpfulness' is no number"),
        ("helpsteer.jsonl:9", "'helpfulness' is empty"),
        ("helpsteer.jsonl:10", "'response' is empty"),
        ("helpsteer.jsonl:11", "no key 'helpfulness' (pairs.score); it has prompt, response"),
    ]
    _, _, problems = found(scores(score="correctness"))
    assert [problem.text for problem in problems][1:3] == [
        "'correctness' is no number"
    ] * 2  # an infinity, a truth value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "toxicity"}, "pairs.score: own.csv has no column 'toxicity'; it has prompt, response, helpfulness"),
        ({}, "pairs.score: no two rows of own.csv share 'prompt' and differ in 'helpfulness'; name other columns"),
    ],
)
def test_columns_that_make_no_pairs_are_one_line(tmp_path, options, message):
    (tmp_path / "own.csv").write_text("prompt,response,helpfulness\na,x,1\na,y,1.0\nb,z,2\n")
    with pytest.raises(UsageError) as raised:
        own_rows.pairs(scores("own.csv", **options), 0, tmp_path)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_every_format_gives_the_same_pairs(tmp_path, kind):
    rows = pd.DataFrame([(f"p{n % 20}", f"answer {n}", n % 7 / 2) for n in range(80)],
                        columns=["prompt", "response", "helpfulness"])  # fmt: skip
    match kind:
        case "csv":
            rows.to_csv(tmp_path / "own.csv", index=False)
        case "parquet":
            rows.to_parquet(tmp_path / "own.parquet")
        case "jsonl":
            rows.to_json(tmp_path / "own.jsonl", orient="records", lines=True)
    made, parts, problems = found(scores(f"own.{kind}"), tmp_path)
    value = dict(zip(rows["response"], rows["helpfulness"], strict=True))
    prompts = rows.groupby("prompt")["helpfulness"].apply(list)
    assert not problems and len(made) == sum(a != b for each in prompts for a, b in combinations(each, 2))
    assert all(value[pair.chosen] > value[pair.rejected] for pair in made)
    assert not {p.document for p in parts["train"]} & {p.document for p in parts["heldout"]} and all(parts.values())
    few, _, _ = found(scores(f"own.{kind}", limit=9), tmp_path)
    assert len(few) == 9 and {pair[1:] for pair in few} <= {pair[1:] for pair in made}


def test_conversations_and_many_answers_to_one_prompt(tmp_path):
    ask = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": ask, "response": [{"role": "assistant", "content": f"Hello {n}."}], "helpfulness": n}
        for n in range(40)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, _, problems = found(scores("own.jsonl"), tmp_path)
    assert not problems and len(made) == own_rows.MOST_ANSWERS * (own_rows.MOST_ANSWERS - 1) // 2
    assert {pair.document for pair in made} == {"Human: Hi"}


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from("abcdef"), st.integers(0, 2)), max_size=12))
def test_every_pair_is_of_one_prompt_and_in_order(rows):
    answers = [own_rows.Answer(f"f:{n}", prompt, text, score) for n, (prompt, text, score) in enumerate(rows)]
    problems = []
    made = own_rows._paired(answers, 0, problems)
    known = {}
    for answer in answers:
        known.setdefault((answer.document, answer.response), answer.score)  # the first of equal rows holds
    assert len(problems) == len(rows) - len(known)
    assert {tuple(pair[1:]) for pair in made} == {
        (p, a, b) for (p, a), one in known.items() for (q, b), other in known.items() if p == q and one > other
    }


def test_the_stage_and_clp_data_read_them(tmp_path, monkeypatch):
    config = load_config("params.yaml")
    rows = [{"prompt": f"p{n // 2}", "response": f"answer {n}", "helpfulness": n % 2} for n in range(60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = config.reward_models["informativeness"].model_copy(update={"pairs": scores("own.jsonl")})
    config = config.model_copy(update={"reward_models": {"helpful": model}})
    monkeypatch.chdir(tmp_path)
    sizes = pairs.build_pairs(config, "helpful", tmp_path, tmp_path / "pairs")
    train = pd.read_parquet(tmp_path / "pairs" / "train.parquet")
    assert sizes == {"train": len(train), "heldout": 30 - len(train)} and set(train["kind"]) == {"preference"}
    shown = check.check(config)["reward_models.helpful.pairs"]
    assert shown["rows"] == sizes and len(shown["samples"]) == check.SAMPLES
    pipeline = {"stages": {"pairs": {"do": {"deps": []}}}}
    assert adapt(pipeline, config, tmp_path) and pipeline["stages"]["pairs"]["do"]["deps"] == ["own.jsonl"]
    with (tmp_path / "own.jsonl").open("a") as stream:
        stream.write('{"prompt": "p0", "response": "bad", "helpfulness": "good"}\n')
    with pytest.raises(ClpError, match=r"own.jsonl:61: 'helpfulness' is no number; .*reward_models.helpful.pairs.skip"):
        pairs.build_pairs(config, "helpful", tmp_path, tmp_path / "pairs")
