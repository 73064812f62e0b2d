"""The section `rewards`: what is accepted, what is refused with one line, and that docs/rewards.md says the same."""

import copy
import re
from typing import Any, get_args

import pytest
from locations import DEFAULT, REPOSITORY
from pydantic import ValidationError
from ruamel.yaml import YAML
from test_config import problem

from clp_lightning.config.parameters import Config
from clp_lightning.config.rewards import MONITORS, AnyReward
from clp_lightning.rewards.reward_set import REGISTRY, RewardSet
from clp_lightning.store.results import MONITORS as STORED_MONITORS

DOCUMENT = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
HTTP = {"kind": "http", "url": "http://localhost:1/x"}
JUDGE = {"kind": "judge", "url": "http://localhost:1/v1", "model": "m", "criterion": "c"}


def with_rewards(rewards: dict[str, Any]) -> dict[str, Any]:
    return {**copy.deepcopy(DEFAULT), "rewards": rewards}


def kinds() -> dict[str, Any]:
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in get_args(AnyReward)}


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL))
def test_examples_of_the_documentation_are_valid(block):
    rewards = YAML(typ="safe", pure=True).load(block)["rewards"]
    config = Config.model_validate(with_rewards(rewards))
    assert config.objectives == tuple(rewards)
    assert config.model_dump()["rewards"] == rewards  # what was not stated is not written out


def test_the_table_of_the_documentation_has_every_kind_with_every_key_and_default():
    rows = {row[0]: row[2] for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", DOCUMENT, re.MULTILINE)}
    assert set(rows) == set(kinds()) == set(REGISTRY)
    for kind, section in kinds().items():
        fields = {name: field for name, field in section.model_fields.items() if name not in ("kind", "cache")}
        assert set(fields) <= set(re.findall(r"`(\w+)`", rows[kind])) or (not fields and rows[kind] == "none")
        for name, field in fields.items():
            if not field.is_required() and not (kind == "length" and field.default is None):
                value = {True: "true", False: "false", None: "null"}.get(field.default, str(field.default))
                value = str(field.default) if type(field.default) in (int, float) else value
                assert re.search(rf"`{name}` \(`?{re.escape(value)}\b", rows[kind]), (kind, name)


def test_every_kind_has_an_example():
    examples = re.findall(r"^    kind: (\w+)$", DOCUMENT, re.MULTILINE)
    assert set(examples) == set(kinds())


def test_one_reward_is_enough(tmp_path):
    config = Config.model_validate(with_rewards({"short": {"kind": "brevity", "min_words": 1}}))
    assert RewardSet.from_config(config, tmp_path, None).raw(["d"], ["two words"]).tolist() == [[-2.0]]


def test_monitors_names_are_those_of_the_store():
    assert MONITORS == STORED_MONITORS


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "llm"}, "rewards.x: expected a kind among 'learned', 'brevity', 'length', 'regex', 'readability', "
            "'rouge', 'similarity', 'python', 'http', 'judge', but found 'llm'"),
        ({"kind": "learned", "model": "m", "indx": 1}, "rewards.x.indx: unknown key; remove it or correct its spelling"),
        ({"kind": "learned", "model": "m", "index": -1},
         "rewards.x.index: input should be greater than or equal to 0, but found -1"),
        ({"kind": "learned", "model": "m", "template": "Q: {document}"},
         "rewards.x.template: must be pair, chat or a text with {document} and {response}, but found 'Q: {document}'"),
        ({"kind": "learned", "model": "m", "cache": "disk"},
         "rewards.x.cache: input should be 'none' or 'memory', but found 'disk'"),
        ({"kind": "length", "unit": "words"}, "rewards.x.max: state either target or max, not both"),
        ({"kind": "length", "unit": "words", "target": 3, "max": 4},
         "rewards.x.max: state either target or max, not both"),
        ({"kind": "length", "unit": "words", "tolerance": 3, "max": 4},
         "rewards.x.max: tolerance belongs to target; remove it, or state target instead of max"),
        ({"kind": "length", "unit": "tokens", "max": 4},
         "rewards.x.unit: input should be 'words' or 'characters', but found 'tokens'"),
        ({"kind": "regex", "pattern": "("},
         "rewards.x.pattern: not a regular expression: missing ) at position 1; correct the pattern '('"),
        ({"kind": "regex", "pattern": "a", "found": float("nan")},
         "rewards.x.found: input should be a finite number, but found nan"),
        ({"kind": "python", "function": "scoring"},
         "rewards.x.function: must be module:function, as in scoring:politeness, but found 'scoring'"),
        ({"kind": "python", "function": "a..b:c"},
         "rewards.x.function: must be module:function, as in scoring:politeness, but found 'a..b:c'"),
        (HTTP | {"url": "localhost:80"},
         "rewards.x.url: must begin with http:// or https:// and name a host, but found 'localhost:80'"),
        (HTTP | {"url": "http://host:port/"},
         "rewards.x.url: must begin with http:// or https:// and name a host, but found 'http://host:port/'"),
        (HTTP | {"url": "http://me:secret@host/"}, "rewards.x.url: holds a user or password; put a token into an "
            "environment variable and name it in token_env"),
        (HTTP | {"token_env": "sk-secret"}, "rewards.x.token_env: must be the name of an environment variable "
            "(letters, digits and _), not the token itself"),
        (HTTP | {"timeout": 0.0}, "rewards.x.timeout: input should be greater than 0, but found 0.0"),
        (HTTP | {"retries": -1}, "rewards.x.retries: input should be greater than or equal to 0, but found -1"),
        (JUDGE | {"criterion": ""}, "rewards.x.criterion: string should have at least 1 character, but found ''"),
        (JUDGE | {"max_unreadable": 2.0},
         "rewards.x.max_unreadable: input should be less than or equal to 1, but found 2.0"),
    ],
)  # fmt: skip
def test_bad_sections_are_one_line(tmp_path, section, message):
    assert problem(tmp_path, with_rewards({"x": section})) == message


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["coverage"], "rewards: coverage is the name of a monitor (rouge_l, coverage, kl, length, distinct_2); choose another"),
        (["rouge-l"], "rewards: rouge-l is the name of a monitor (rouge_l, coverage, kl, length, distinct_2); choose another"),
        (["a-b", "a_b"], "rewards: a-b and a_b are too much alike; choose another name for one of them"),
        (["Short"], "rewards.Short: a name is of a-z, 0-9, _, + and -, a letter first, but found 'Short'"),
        ([], "rewards: name at least one objective"),
    ],
)  # fmt: skip
def test_names_that_clash_are_one_line(tmp_path, names, message):
    brevity = {"kind": "brevity", "min_words": 1}
    assert problem(tmp_path, with_rewards(dict.fromkeys(names, brevity))) == message


def test_sections_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Config.model_validate(DEFAULT).rewards["readability"].cache = "memory"
