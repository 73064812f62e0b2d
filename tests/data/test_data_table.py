"""A user's own rows: every format gives the same rows, every bad row its place and reason, no prompt two splits."""

import json
import re

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_lightning.config.data import ColumnSplits, GivenSplits, HashSplits, Preferences, Table
from clp_lightning.data import own_rows
from clp_lightning.errors import ClpError, UsageError

ROWS = [{"title": f"Thing {n}", "text": f'It is "number", {n}\nof many.', "answer": f"Number {n}."} for n in range(40)]
HASHED = HashSplits(kind="hash", validation=0.2, test=0.2, group=None)


def table(source, **options) -> Table:
    values = {
        "kind": "table", "source": str(source), "subset": None, "prompt": "{title}: {text}", "messages": None,
        "transcript": None, "reference": "answer", "splits": HASHED, "limit": None, "skip_bad_rows": False,
    }  # fmt: skip
    return Table(**(values | options))


def write(folder, kind):
    frame = pd.DataFrame(ROWS)
    match kind:
        case "csv" | "tsv":
            frame.to_csv(folder / f"own.{kind}", index=False, sep="," if kind == "csv" else "\t")
        case "semicolon":
            frame.to_csv(folder / "own.csv", index=False, sep=";")
            return "own.csv"
        case "bom":
            frame.to_csv(folder / "own.csv", index=False, encoding="utf-8-sig")
            return "own.csv"
        case "jsonl":
            frame.to_json(folder / "own.jsonl", orient="records", lines=True)
        case "json":
            frame.to_json(folder / "own.json", orient="records")
        case "parquet":
            frame.to_parquet(folder / "own.parquet")
        case "saved":
            datasets.Dataset.from_pandas(frame).save_to_disk(str(folder / "saved"))
            return "saved"
        case "folder":
            (folder / "folder").mkdir()
            frame.to_json(folder / "folder" / "train.jsonl", orient="records", lines=True)
            return "folder"
    return f"own.{kind}"


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "bom", "jsonl", "json", "parquet", "saved", "folder"])
def test_every_format_gives_the_same_splits(tmp_path, kind):
    parts, problems = own_rows.examples(table(write(tmp_path, kind)), 0, tmp_path)
    assert problems == []
    found = {each.document: each.summary for rows in parts.values() for each in rows}
    assert found == {f"{row['title']}: {row['text']}": row["answer"] for row in ROWS}
    first, _ = own_rows.examples(table(write(tmp_path, "jsonl")), 0, tmp_path)
    assert {split: {row.document for row in rows} for split, rows in parts.items()} == {
        split: {row.document for row in rows} for split, rows in first.items()
    }
    assert all(parts.values())


def bad(tmp_path, name, content, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    parts, problems = own_rows.examples(table(name, **options), 0, tmp_path)
    return sum(map(len, parts.values())), problems


@pytest.mark.parametrize(
    ("name", "content", "options", "kept", "expected"),
    [
        ("a.csv", "q,r\nx,1\ny\nz,2\n", {}, 2, [("a.csv:3", "1 field, but the first line names 2 columns")]),
        ("a.csv", "q,r\nx,1\n,2\n", {}, 1, [("a.csv:3", "'q' is empty")]),
        ("a.csv", 'q,r\n"x\ny",1\n,2\n', {}, 1, [("a.csv:4", "'q' is empty")]),  # a record of two lines before
        ("a.csv", "q,r\nx,1\nX ,2\n", {}, 1, [("a.csv:3", "the same prompt as another row (a.csv:2)")]),
        ("a.csv", b"q,r\nx,1\nna\xefve,2\nz,3\n", {}, 2,
         [("a.csv:3", "not UTF-8 (byte 0xef); save the file as UTF-8")]),
        ("a.csv", 'q,r\nx,1\n"y,2\nz,3\n', {}, 1,
         [("a.csv:3", "not well-formed up to line 4 (unexpected end of data); double the quotes inside of quotes")]),
        ("a.jsonl", '{"q": "x", "r": "1"}\n{"q": \n[1]\n{"q": "z", "r": 2}\n{"q": 3, "r": "4"}\n', {}, 3,
         [("a.jsonl:2", "not JSON (Expecting value at character 8)"),
          ("a.jsonl:3", "expected an object with the columns as keys")]),
        ("a.jsonl", '{"q": "x", "r": "1"}\n{"p": "y", "r": "1"}\n{"q": ["y"], "r": "1"}\n{"q": "a\\ud800", "r": "1"}\n',
         {}, 1,
         [("a.jsonl:2", "no key 'q' (data.prompt); it has p, r"), ("a.jsonl:3", "'q' is no text"),
          ("a.jsonl:4", "'q' holds half a character (a lone surrogate)")]),
        ("a.csv", "q,r,s\nx,1,test\nx,1,train\ny,2,train\nz,3,else\n", {"splits": ColumnSplits(kind="column", column="s")},
         2, [("a.csv:3", "leaks: the same prompt is in the test split (a.csv:2)"),
             ("a.csv:5", "the split 'else' is none of train, validation and test")]),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_line_and_reason(tmp_path, name, content, options, kept, expected):
    count, problems = bad(tmp_path, name, content, prompt="q", reference="r", **options)
    assert [(problem.place, problem.text) for problem in problems] == expected
    assert count == kept  # nothing else is lost
    with pytest.raises(ClpError) as raised:
        own_rows.refuse(problems, False, "data")
    assert str(raised.value).startswith(f"{expected[0][0]}: {expected[0][1]}") and "\n" not in str(raised.value)
    assert sum(own_rows.refuse(problems, True, "data").values()) == len(expected)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "p,r\nx,1\n", {}, "data.prompt: a.csv has no column 'q'; it has p, r"),
        ("a.csv", "q,r\nx,1\n", {"reference": "answer"}, "data.reference: a.csv has no column 'answer'; it has q, r"),
        ("a.csv", "q,q\nx,1\n", {}, "a.csv:1: a column's name occurs twice among q, q; rename one"),
        ("a.csv", "", {}, "a.csv:1: no line with the names of the columns"),
        ("a.csv", "q,r\n", {}, "the source has no rows; name one that has"),
        ("a.csv", b"\xff\xfeq\x00", {}, "a.csv:1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("a.csv", "q,r\r\nx,1\r\n".encode("utf-16"), {}, "a.csv:1: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("a.csv", 'q,"r\nx,1\n', {}, "a.csv:1: the line with the names of the columns is not well-formed (unexpected end"),
        ("a.json", "{", {}, "a.json: not JSON"),
        ("a.json", "3", {}, "a.json: expected a list of objects, or one object per line"),
        ("a.parquet", "no", {}, "a.parquet: not a readable Parquet file"),
        ("a.xlsx", "no", {}, "a.xlsx: files of the kind .xlsx are not read; use .csv"),
        ("a.csv", "q,r\nx,1\n", {"prompt": "{q"}, "data.prompt: not a template"),
        ("a.csv", "q,r\nx,1\n", {"prompt": "{q.__class__}"}, "data.prompt: a.csv has no column 'q.__class__'; it has q, r"),
        ("a.csv", "q,r\nx,1\n", {"prompt": "{}"}, "data.prompt: '{}' must name columns"),
        ("a.csv", "q,r\nx,1\n", {"splits": GivenSplits(kind="given")},
         "data.splits: the source has no splits of its own; use the kind hash or column"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_read_is_one_line(tmp_path, name, content, options, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        own_rows.examples(table(name, **({"prompt": "q", "reference": "r"} | options)), 0, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["none.csv", "./none", "/none/at/all"])
def test_a_source_that_is_not_there(tmp_path, source):
    with pytest.raises(UsageError, match=r"no such file or folder; correct the path"):
        own_rows.examples(table(source), 0, tmp_path)


def test_a_name_on_the_hub_is_not_fetched_behind_the_users_back(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="nobody/nothing: neither a readable dataset folder nor one on the hub"):
        own_rows.examples(table("nobody/nothing"), 0, tmp_path)


def test_splits_that_a_dataset_has_are_kept(tmp_path):
    parts = {"train": ROWS[:30], "test": ROWS[30:]}
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in parts.items()}).save_to_disk(
        str(tmp_path / "given")
    )
    found, problems = own_rows.examples(table("given", splits=GivenSplits(kind="given")), 0, tmp_path)
    assert not problems and len(found["test"]) == 10 and len(found["train"]) + len(found["validation"]) == 30
    assert found["validation"]


def test_messages_and_transcripts_give_prompt_and_reference(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello."}) + "\n")
    for name, column in (("m.jsonl", "messages"), ("t.jsonl", "transcript")):
        options = {"prompt": None, "reference": None, column: "messages" if name == "m.jsonl" else "chosen"}
        parts, _ = own_rows.examples(table(name, **options), 0, tmp_path)
        (found,) = (each for rows in parts.values() for each in rows)
        assert (found.document, found.summary) == ("Human: Hi", "Hello.")


def test_a_transcript_that_ends_with_its_question_has_no_reference(tmp_path):
    texts = ["Human: Hi", "\n\nHuman: Ho\n\nAssistant:", "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"t": text}) + "\n" for text in [*texts, "Hi", "Assistant: x"])
    )
    parts, problems = own_rows.examples(table("t.jsonl", prompt=None, reference=None, transcript="t"), 0, tmp_path)
    found = {each.document: each.summary for rows in parts.values() for each in rows}
    assert found == {"Human: Hi": None, "Human: Ho": None, "Human: a\n\nAssistant: b\n\nHuman: c": None}
    assert [problem.text for problem in problems] == ["expected Human and Assistant in turns, the assistant last"] * 2


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=60), st.integers(0, 3))
def test_a_row_keeps_its_split_when_others_come_and_go(numbers, seed):
    def splits(chosen):
        examples = [own_rows.Example("", "", f"row {n}", f"row {n}", None, None) for n in chosen]
        return {each.document: own_rows._split_of(each, table("x.csv"), seed, []) for each in examples}

    half = sorted(numbers)[: len(numbers) // 2]
    assert splits(half).items() <= splits(numbers).items()


def test_rows_of_one_group_stay_together(tmp_path):
    rows = [{"q": f"{group} {n}", "g": group} for group in range(30) for n in range(5)]
    pd.DataFrame(rows).to_csv(tmp_path / "g.csv", index=False)
    splits = HashSplits(kind="hash", validation=0.2, test=0.2, group="g")
    parts, _ = own_rows.examples(table("g.csv", prompt="q", reference=None, splits=splits), 0, tmp_path)
    groups = [{each.group for each in rows} for rows in parts.values()]
    assert sum(map(len, groups)) == 30 == len(set.union(*groups))


def preferences(source, **options) -> Preferences:
    values = {
        "kind": "preferences", "source": source, "subset": None, "prompt": None, "chosen": "chosen",
        "rejected": "rejected", "heldout": 0.3, "limit": None, "skip_bad_rows": False,
    }  # fmt: skip
    return Preferences(**(values | options))


def test_preferences_in_all_of_trls_forms_are_the_same_pairs(tmp_path):
    def ask(n):
        return [{"role": "user", "content": f"Question {n}"}]

    def say(text):
        return [{"role": "assistant", "content": text}]

    forms = {
        "explicit": [{"prompt": f"Human: Question {n}", "chosen": "Yes.", "rejected": "No."} for n in range(30)],
        "conversation": [{"prompt": ask(n), "chosen": say("Yes."), "rejected": say("No.")} for n in range(30)],
        "implicit": [{"chosen": ask(n) + say("Yes."), "rejected": ask(n) + say("No.")} for n in range(30)],
        "hh": [
            {side: f"\n\nHuman: Question {n}\n\nAssistant: {text}" for side, text in
             (("chosen", "Yes."), ("rejected", "No."))} for n in range(30)
        ],
    }  # fmt: skip
    found = []
    for name, rows in forms.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = preferences(f"{name}.jsonl", prompt="prompt" if "prompt" in rows[0] else None)
        parts, problems = own_rows.pairs(asked, 0, tmp_path)
        assert not problems and all(parts.values())
        found.append({split: sorted(pair[1:] for pair in rows) for split, rows in parts.items()})
    assert all(each == found[0] for each in found)


def test_bad_pairs_are_named(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: "},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: d"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, problems = own_rows.pairs(preferences("p.jsonl"), 0, tmp_path)
    assert [(problem.place, problem.text) for problem in problems] == [
        ("p.jsonl:1", "chosen and rejected are the same"),
        ("p.jsonl:2", "the two answers do not answer the same prompt"),
        ("p.jsonl:3", "rejected is empty"),
        ("p.jsonl:5", "the same pair as another row (p.jsonl:4)"),
    ]
