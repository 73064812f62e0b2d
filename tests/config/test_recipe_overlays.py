"""Overlays: what they merge, what they replace, and what is said of those that are wrong."""

import shutil

import pytest
from locations import DEFAULT, REPOSITORY
from ruamel.yaml import YAML

from clp_lightning.config.parameters import load_config
from clp_lightning.config.recipes import compose, recipes
from clp_lightning.errors import UsageError


@pytest.fixture
def root(tmp_path):
    (tmp_path / "conf").mkdir()
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    return tmp_path


def composed(root, overlay: str):
    (root / "conf" / "own.yaml").write_text(overlay)
    config, text = compose("own", root)
    (root / "whole.yaml").write_text(text)
    assert load_config(root / "whole.yaml") == config  # it states every value, and the same
    return YAML(typ="safe").load(text)


def test_an_empty_difference_is_the_default_run_to_the_value(root):
    assert composed(root, "seed: 0\n") == DEFAULT


def test_keys_are_merged_and_only_they_change(root):
    values = composed(root, "training: {steps: 3}\nrewards: {plain: {kind: readability}}\n")
    expected = DEFAULT | {
        "training": DEFAULT["training"] | {"steps": 3},
        "rewards": DEFAULT["rewards"] | {"plain": {"kind": "readability"}},
    }
    assert values == expected
    assert list(values["rewards"]) == ["informativeness", "readability", "plain"]  # the order of objectives


def test_null_takes_the_place_of_a_section(root):
    assert composed(root, "sft: null\n")["sft"] is None


def test_a_replaced_section_has_nothing_of_the_default(root):
    values = composed(root, "replace: [base]\nbase: {kind: random, vocabulary: 99, hidden: 8, layers: 1, heads: 2}\n")
    assert values["base"] == {"kind": "random", "vocabulary": 99, "hidden": 8, "layers": 1, "heads": 2}
    assert list(values) == list(DEFAULT) and "replace" not in values


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("trainings: {steps: 3}\n", r"trainings: unknown key; remove it or correct its spelling"),
        ("training: {stepps: 3}\n", r"training.stepps: unknown key; remove it or correct its spelling"),
        ("training: {steps: '3'}\n", r"training.steps: input should be a valid integer, but found '3'"),
        ("training: 3\n", r"training: expected keys and values, but found 3"),
        ("base: {kind: random}\n", r"base.model: unknown key; remove it"),  # of another kind, and not replaced
        ("replace: base\n", r"replace: expected a list of sections, but found 'base'"),
        ("replace: [base]\n", r"replace: base is no section of this file; state it, or leave it out of the list"),
        ("replace: [gpu]\ngpu: {a: 1}\n", r"gpu: unknown key"),
        ("encoder: ${nowhere}\n", r"encoder: .*nowhere.*; correct it there"),
        ("training: {steps: 3\n", r"not valid YAML: .* in line 2"),
        ("- 3\n", r"expected keys and values"),
        ("", r"expected keys and values"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_overlay_and_the_key(root, overlay, message):
    with pytest.raises(UsageError, match=rf"^{root}/conf/own.yaml: {message}") as raised:
        composed(root, overlay)
    assert "\n" not in str(raised.value)


def test_an_unknown_recipe_names_those_that_are_there(root):
    with pytest.raises(UsageError, match=r"recipe 'nosuch': no such file .*conf/nosuch.yaml; recipes here: none"):
        compose("nosuch", root)


def test_a_wrong_default_is_not_blamed_on_the_overlay(root):
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 0", "seed: -1", 1))
    with pytest.raises(UsageError, match=rf"^{root}/params.yaml: seed: "):
        composed(root, "training: {steps: 3}\n")


@pytest.mark.parametrize("name", recipes(REPOSITORY))
def test_an_overlay_is_small(name):
    lines = (REPOSITORY / "conf" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (70 if name == "arena" else 40)
