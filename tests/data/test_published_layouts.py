"""Files as people have them (tests/cases/data): each was read wrongly, silently or not at all in version 0.1."""

import gzip
import json
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from locations import REPOSITORY

from clp_lightning.config.data import Preferences, Table
from clp_lightning.data.own_rows import examples, pairs
from clp_lightning.errors import UsageError

CASES = REPOSITORY / "tests" / "cases" / "data"


def table(source: str, **changes: Any) -> Table:
    values = {
        "kind": "table", "source": source, "subset": None, "prompt": "q", "messages": None, "transcript": None,
        "reference": "r", "splits": {"kind": "hash", "validation": 0.1, "test": 0.1, "group": None}, "limit": None,
        "skip_bad_rows": False,
    }  # fmt: skip
    return Table.model_validate(values | changes)


def preferences(
    source: str, prompt: str | None = "prompt", chosen: str = "chosen", rejected: str = "rejected"
) -> Preferences:
    return Preferences(
        kind="preferences", source=source, subset=None, prompt=prompt, chosen=chosen, rejected=rejected, heldout=0.01,
        limit=None, skip_bad_rows=False,
    )  # fmt: skip


def read(config: Table, root=CASES):
    parts, problems = examples(config, 0, root)
    rows = sorted((each for part in parts.values() for each in part), key=lambda each: each.place)
    return [(each.document, each.summary) for each in rows], [(problem.place, problem.text) for problem in problems]


def test_what_is_missing_is_missing_and_numbers_stay_as_written():
    rows, problems = read(table("missing.jsonl"))
    assert rows == [("a b", None), ("c", "1e400"), ("1.50", None), ("d", None)]
    assert problems == [("missing.jsonl:2", "'q' is empty")]


def test_missing_cells_of_parquet_are_missing(tmp_path):
    columns = {"q": [1.5, float("nan"), float("inf")], "r": ["x", "y", None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows, problems = read(table("t.parquet"), tmp_path)
    assert rows == [("1.5", "x")]
    assert problems == [("t.parquet, row 2", "'q' is empty"), ("t.parquet, row 3", "'q' is empty")]


def test_json_lines_under_the_suffix_json_are_read():
    assert read(table("lines.json")) == ([("a", "x"), ("b", "y")], [])


def test_empty_columns_behind_the_last_are_no_columns():
    rows, problems = read(table("trailing.csv"))
    assert rows == [("a", "x"), ("b", "y")]
    assert problems == [("trailing.csv:4", "4 fields, but the first line names 2 columns")]


@pytest.mark.parametrize("name", ["lines.json", "trailing.csv", "missing.jsonl"])
def test_a_compressed_file_is_read_as_the_file(name, tmp_path):
    with (CASES / name).open("rb") as plain, gzip.open(tmp_path / f"{name}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    rows, problems = read(table(f"{name}.gz"), tmp_path)
    expected, bad = read(table(name))
    assert rows == expected and problems == [(place.replace(name, f"{name}.gz"), text) for place, text in bad]


def test_a_compressed_parquet_file_and_half_a_compressed_file(tmp_path):
    pq.write_table(pa.table({"q": ["a"], "r": ["x"]}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    assert read(table("t.parquet.gz"), tmp_path) == ([("a", "x")], [])
    whole = gzip.compress(b"q,r\n" + b"a,x\n" * 1000)
    (tmp_path / "half.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"half.csv.gz: not a whole gzip file .*; compress it again"):
        read(table("half.csv.gz"), tmp_path)
    (tmp_path / "none.csv.gz").write_text("q,r\na,x\n")
    with pytest.raises(UsageError, match=r"none.csv.gz: not a whole gzip file"):
        read(table("none.csv.gz"), tmp_path)


def test_half_a_character_is_a_bad_row_wherever_it_stands():
    rows, problems = read(table("surrogates.jsonl", prompt=None, messages="m", reference=None))
    assert rows == [("Human: fine", None)]
    assert problems == [("surrogates.jsonl:1", "the content of message 1 holds half a character (a lone surrogate)")]
    parts, found = pairs(preferences("surrogates.jsonl", "p", "c", "w"), 0, CASES)
    assert not any(parts.values())
    assert [problem.text for problem in found] == [
        "the prompt holds half a character (a lone surrogate)", "chosen holds half a character (a lone surrogate)",
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", ["prompt", None])
def test_pairs_as_ultrafeedback_has_them(prompt):
    parts, problems = pairs(preferences("ultrafeedback.jsonl", prompt), 0, CASES)
    found = sorted((pair for part in parts.values() for pair in part), key=lambda pair: pair.place)
    assert found[0][1:] == ("Human: Why?", "Because.", "No.")
    if prompt is None:
        assert len(found) == 2 and not problems
    else:
        assert [problem.text for problem in problems] == [
            "chosen and rejected begin with another prompt than the prompt's column has; with prompt: null the prompt is "
            "what both begin with"
        ]


def test_transcripts_beside_their_prompt_are_told_of_null(tmp_path):
    row = {
        side: f"\n\nHuman: Why?\n\nAssistant: {answer}" for side, answer in (("chosen", "Yes."), ("rejected", "No."))
    }
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Why?"} | row))
    _, problems = pairs(preferences("p.jsonl"), 0, tmp_path)
    assert [problem.text for problem in problems] == [
        "chosen and rejected are transcripts that begin with their prompt; with prompt: null the prompt is what both begin with"
    ]
    parts, problems = pairs(preferences("p.jsonl", None), 0, tmp_path)
    assert not problems and [pair[1:] for pair in parts["train"]] == [("Human: Why?", "Yes.", "No.")]


def test_conversations_as_sharegpt_has_them_without_an_empty_system_turn():
    rows, problems = read(table("sharegpt.jsonl", prompt=None, messages="conversations", reference=None))
    assert rows == [("Human: Hi", "Hello.")]
    assert problems == [
        ("sharegpt.jsonl:2", "message 1 needs a role among user, assistant, system, developer, but has 'robot'")
    ]


def test_content_in_parts_is_their_text():
    rows, problems = read(table("parts.jsonl", prompt=None, messages="messages", reference=None))
    assert rows == [("Human: Hi there", None)]
    assert problems == [("parts.jsonl:2", "message 1 has a part of the kind 'image_url'; only texts are read")]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train_sft", "train"), ("test_prefs", "test"), ("val", "validation"), ("valid", "validation"), ("dev", "validation"),
     ("eval", "validation"), ("Train", "train")],
)  # fmt: skip
def test_splits_are_known_by_their_published_names(name, split, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"q": "a", "r": "x", "s": name}))
    parts, problems = examples(table("t.jsonl", splits={"kind": "column", "column": "s"}), 0, tmp_path)
    assert not problems and [key for key, rows in parts.items() if rows] == [split]
