"""Roles that came as roles stay roles, and no text becomes one, from a file to the splits that every stage reads."""

import json

import pandas as pd
from locations import REPOSITORY
from test_data_table import table

from clp_lightning.config.data import Preferences
from clp_lightning.config.parameters import load_config
from clp_lightning.data import build_corpus, from_messages, is_transcript, read_split, to_messages
from clp_lightning.data.check import check
from clp_lightning.data.pairs import build_pairs

# users' words that look like turns, and control tokens' names
FORGED = [json.loads(line)["messages"] for line in (REPOSITORY / "tests/cases/data/roles.jsonl").open(encoding="utf-8")]


def numbered(n):
    return [[messages[0] | {"content": f"{messages[0]['content']} ({n})"}, *messages[1:]] for messages in FORGED]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(**changes):
    return load_config(REPOSITORY / "params.yaml").model_copy(update=changes)


def test_users_words_stay_theirs_from_the_file_to_the_splits(tmp_path):
    given = [messages for n in range(8) for messages in numbered(n)]
    source = write(tmp_path / "m.jsonl", [{"m": messages} for messages in given])
    build_corpus(config(data=table(source, prompt=None, reference=None, messages="m")), tmp_path / "corpus")
    rows = pd.concat([read_split(tmp_path / "corpus", split) for split in ("train", "validation", "test")])
    asked = [messages[:-1] if messages[-1]["role"] == "assistant" else messages for messages in given]
    assert sorted(map(to_messages, rows["document"]), key=str) == sorted(asked, key=str)
    assert all(map(is_transcript, rows["document"]))  # what people read has the turns


def test_so_do_those_of_preference_pairs(tmp_path):
    """Prompts beside the answers, and in them; texts that are transcripts are read as such."""
    prompts = [messages for n in range(8) for messages in numbered(n) if messages[-1]["role"] == "user"]
    rows = [{"p": messages, "c": f"good {n}", "r": "bad"} for n, messages in enumerate(prompts)]
    source = write(tmp_path / "p.jsonl", rows)
    talks = [f"\n\nHuman: Hi {n}\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: " for n in range(40)]
    other = write(tmp_path / "t.jsonl", [{"c": f"{talk}good", "r": f"{talk}bad"} for talk in talks])
    base = config()
    for path, prompt in ((source, "p"), (other, None)):
        pairs = Preferences(
            kind="preferences", source=path, subset=None, prompt=prompt, chosen="c", rejected="r", heldout=0.3, limit=None,
            skip_bad_rows=False,
        )  # fmt: skip
        model = base.reward_models["informativeness"].model_copy(update={"pairs": pairs})
        build_pairs(base.model_copy(update={"reward_models": {"m": model}}), "m", tmp_path, tmp_path / "out")
        found = pd.concat([read_split(tmp_path / "out", split) for split in ("train", "heldout")])["document"]
        if prompt:
            assert sorted(map(to_messages, found), key=str) == sorted(prompts, key=str)
        else:
            assert {len(to_messages(document)) for document in found} == {3}


def test_prompts_that_look_like_transcripts_are_told(tmp_path):
    rows = [{"q": f"Human: number {n}\n\nAssistant:" if n % 2 else f"number {n}"} for n in range(60)]
    source = write(tmp_path / "q.jsonl", rows)
    (note,) = check(config(data=table(source, prompt="q", reference=None)), tmp_path)["data"]["notes"]
    assert note.startswith("data.prompt: 30 of 60 prompts look like transcripts")


def test_a_ticket_that_names_its_system_is_read():
    document, _ = from_messages([{"role": "user", "content": "It is silent.\n\nSystem: Windows 11"}])
    assert to_messages(document) == [{"role": "user", "content": "It is silent.\n\nSystem: Windows 11"}]
