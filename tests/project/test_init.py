"""`clp init --data`: the file and the columns that the prompt names are looked at before anything is written."""

import gzip
import json

import pytest

from clp_lightning.config.parameters import load_config
from clp_lightning.data.own_rows import examples
from clp_lightning.errors import UsageError
from clp_lightning.project.init import init

CSV = "subject,the body,a:b.c\n" + "".join(f"s{n},b{n},c{n}\n" for n in range(60))
JSONL = "".join(json.dumps({"subject": f"s{n}"} | ({"late": "x"} if n else {})) + "\n" for n in range(9))
REFUSED = [
    ("t.csv", CSV, "{wrong}", "--prompt: {file} has no column 'wrong'; it has subject, the body, a:b.c"),
    ("t.csv", CSV, "wrong", "--prompt: {file} has no column 'wrong'; it has subject, the body, a:b.c"),
    ("t.csv", CSV, "{subject", "--prompt: not a template (a single {{ at character 1); write columns as {{column}}"),
    ("t.csv", CSV, "{}", "--prompt: '{{}}' must name columns"),
    ("t.jsonl", JSONL, "{wrong}", "--prompt: {file} has no column 'wrong'; it has subject, late"),
    ("t.jsonl", "[1]\n", "{wrong}", "{file}:1: expected an object with the columns as keys"),
    ("t.csv", "subject\n", "subject", "{file}: no rows in it; name another file"),
    ("t.txt", CSV, "subject", "{file}: files of the kind .txt are not read; use .csv, .tsv"),
]


@pytest.mark.parametrize(("name", "content", "prompt", "message"), REFUSED)
def test_a_file_that_would_fail_later_is_refused_at_once(tmp_path, name, content, prompt, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as raised:
        init(tmp_path / "own", tmp_path / name, prompt)
    assert str(raised.value).startswith(message.format(file=tmp_path / name)) and "\n" not in str(raised.value)
    assert not (tmp_path / "own").exists()  # nothing half-written


@pytest.mark.parametrize("there", [False, True])
def test_a_prompt_without_a_file_is_refused(tmp_path, there):
    if there:
        init(tmp_path / "own")
    with pytest.raises(
        UsageError, match="--prompt needs --data, the file that has the column; in a project that is there"
    ):
        init(tmp_path / "own", None, "subject")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="a folder; name a file in it"):
        init(tmp_path / "own", tmp_path, "subject")


@pytest.mark.parametrize(
    ("prompt", "first"),
    [("{subject}: {the body}", "s0: b0"), ("the body", "b0"), ("{a:b.c} {{x}}", "c0 {x}"), ("{{{subject}}}", "{s0}")],
)
def test_columns_are_nameable_by_any_name(tmp_path, prompt, first):
    (tmp_path / "t.csv").write_text(CSV)
    init(tmp_path / "own", tmp_path / "t.csv", prompt)
    config = load_config(tmp_path / "own" / "params.yaml")
    parts, problems = examples(config.data, 0, tmp_path / "own")
    assert not problems and first in {each.document for rows in parts.values() for each in rows}


def test_a_compressed_file_keeps_its_kind(tmp_path):
    (tmp_path / "my.data.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    assert "prompts.csv.gz" in init(tmp_path / "own", tmp_path / "my.data.csv.gz", "subject")
    parts, _ = examples(load_config(tmp_path / "own" / "params.yaml").data, 0, tmp_path / "own")
    assert sum(map(len, parts.values())) == 60
