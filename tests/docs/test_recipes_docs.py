"""docs/recipes.md and docs/data.md say what the code does: their examples are valid, and every recipe and key is there."""

import copy
import re
from typing import Any, get_args

import pytest
from locations import REPOSITORY
from ruamel.yaml import YAML

from clp_lightning.config.data import HashSplits, Preferences, RewardModel, Scores, Splits, Table
from clp_lightning.config.recipes import recipes
from clp_lightning.data.tables import FILES

DATA, RECIPES = ((REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("data", "recipes"))
NAMES = recipes(REPOSITORY)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DATA + RECIPES, re.DOTALL))
def test_examples_are_valid(block):
    values = YAML(typ="safe", pure=True).load(block)
    assert set(values) in ({"data"}, {"reward_models"})
    if "data" in values:
        assert Table.model_validate(values["data"]).model_dump() == values["data"]
    for model in copy.deepcopy(values.get("reward_models", {})).values():
        assert RewardModel.model_validate(model).model_dump() == model


def test_every_kind_of_file_split_and_key_is_named():
    def kinds(union: Any) -> set[str]:
        sections = get_args(get_args(union)[0])
        return {get_args(section.model_fields["kind"].annotation)[0] for section in sections}

    for suffix in FILES:
        assert f"`{suffix}`" in DATA
    for kind in kinds(Splits):
        assert re.search(rf"^\| `{kind}` \|", DATA, re.MULTILINE), kind
    for section in (Table, HashSplits, Preferences, Scores):
        for key in section.model_fields:
            assert re.search(rf"\b{key}\b", DATA), (section.__name__, key)


@pytest.mark.parametrize("recipe", NAMES)
def test_every_recipe_has_its_row_and_its_section(recipe):
    assert f"| `{recipe}` |" in RECIPES
    assert f"\n## {recipe}\n" in RECIPES and f"`make repro RECIPE={recipe}`" in RECIPES


def test_there_is_no_recipe_that_the_page_invents():
    assert set(re.findall(r"make repro RECIPE=([\w-]+)", RECIPES)) - {"NAME"} == set(NAMES)
