"""From a study's file to its runs: budgets in rollouts, settings, hashes, and every wrong value as one line."""

import copy

import pytest
from locations import REPOSITORY
from ruamel.yaml import YAML

from clp_lightning.errors import ClpError, UsageError
from clp_lightning.study.definition import Study, load_study, studies
from clp_lightning.study.runs import Run, outstanding, parameters, plan
from clp_lightning.study.table import Tables

FULL = {"conditioning": "full", "shared": False, "prompted": False}
VALUES = {
    "question": "who is ahead", "split": "test", "seeds": [3, 4], "budgets": [1, 3],
    "panels": {"two": {"recipe": "default"}, "three": {"recipe": "three"}},
    "arms": {
        "clp-full": {"method": "clp-full"},
        "soups": {"method": "rewarded-soups", "rollouts": "per_expert"},
        "smoothed": {"method": FULL | {"weightings": {"kind": "smoothed_vertices", "concentration": 0.4}}, "budgets": [1]},
        "groups-of-8": {"method": "clp-full", "training": {"prompts_per_step": 6, "samples_per_prompt": 8, "gradient_clip": 0.5},
                        "budgets": [1]},
    },
}  # fmt: skip


def runs_of(values, **only) -> dict[tuple, Run]:
    return {
        (run.panel, run.arm, run.budget, run.seed): run
        for run in plan("s", Study.model_validate(values), REPOSITORY, only=only)
    }


def test_budgets_are_rollouts_whatever_a_step_draws():
    runs = runs_of(VALUES)
    assert len(runs) == 2 * 2 * (2 + 2 + 1 + 1)
    # the recipe: 26 steps x 4 prompts x 6 samples = 624; per expert of two 1,248, of three 1,872
    assert runs["two", "clp-full", 3, 3].rollouts == 1872 and runs["two", "soups", 1, 3].rollouts == 1248
    assert runs["three", "soups", 1, 3].rollouts == 1872 and runs["three", "soups", 3, 4].rollouts == 5616
    eight = runs["two", "groups-of-8", 1, 4]
    assert eight.rollouts == 624 and eight.config.training.steps == 13  # 48 a step
    assert eight.config.training.gradient_clip == 0.5 and eight.config.training.seed == 4
    assert eight.settings == "prompts_per_step=6 samples_per_prompt=8 gradient_clip=0.5"
    assert list(eight.config.methods) == ["groups-of-8"] and eight.config.compared == ("reference", "groups-of-8")
    smoothed = runs["three", "smoothed", 1, 3]
    assert (
        smoothed.method
        == "conditioning=full shared=False prompted=False weightings.kind=smoothed_vertices weightings.concentration=0.4"
    )


def test_small_budgets_come_first_and_then_seed_by_seed():
    order = [(run.budget, run.seed) for run in plan("s", Study.model_validate(VALUES), REPOSITORY)]
    assert order == sorted(order)
    chosen = runs_of(VALUES, budget=[1], seed=[4], panel=["two"], arm=["soups"])
    assert list(chosen) == [("two", "soups", 1, 4)]
    with pytest.raises(UsageError, match=r"^--seed 0: not in study s, which has 3, 4$"):
        runs_of(VALUES, seed=[0])


def test_a_hash_follows_what_decides_the_outcome_and_nothing_else():
    runs = runs_of(VALUES)
    one = runs["two", "clp-full", 1, 3]
    assert one.config_hash == runs["two", "clp-full", 1, 4].config_hash != runs["two", "clp-full", 3, 3].config_hash
    renamed = copy.deepcopy(VALUES)
    renamed["arms"] = {"another": {"method": "clp-full"}}
    assert runs_of(renamed)["two", "another", 1, 3].config_hash == one.config_hash
    for panel, changes in {"training": {"learning_rate": 2e-3}, "evaluation": {"prompts": 32}}.items():
        changed = copy.deepcopy(VALUES)
        changed["panels"]["two"]["settings"] = {panel: changes}
        other = runs_of(changed)["two", "clp-full", 1, 3]
        assert other.config_hash != one.config_hash and other.shared_hash == one.shared_hash
    longer = copy.deepcopy(VALUES)
    longer["panels"]["two"]["settings"] = {"generation": {"max_new_tokens": 32}}
    assert runs_of(longer)["two", "clp-full", 1, 3].shared_hash != one.shared_hash
    validation = runs_of(VALUES | {"split": "validation"})["two", "clp-full", 1, 3]
    assert validation.config_hash != one.config_hash and validation.shared_hash == one.shared_hash
    # a key that is off, as one that a later version adds, leaves it
    training = one.config.training.model_copy(update={"a_key_of_tomorrow": None})
    assert (
        Run(**{**vars(one), "config": one.config.model_copy(update={"training": training})}).config_hash
        == one.config_hash
    )


def test_a_runs_parameter_file_states_its_configuration(tmp_path):
    from clp_lightning.config.parameters import load_config

    for run in runs_of(VALUES, seed=[4], budget=[1], panel=["three"]).values():
        (tmp_path / "params.yaml").write_text(parameters(run.config))
        assert load_config(tmp_path / "params.yaml") == run.config


SCALED = {"of": "soups", "decoding": {"kind": "scaled", "factor": 0.8}}


def test_an_arm_of_another_decodes_from_each_of_its_runs():
    values = copy.deepcopy(VALUES)
    values["arms"]["soups"]["budgets"] = [3]
    values["arms"] |= {"less": SCALED, "more": {"of": "soups", "decoding": {"kind": "scaled", "factor": 1.3}}}
    runs, before = runs_of(values), runs_of(VALUES)
    of = [run for run in runs.values() if run.trained]
    assert [run.name for run in of if run.arm == "less"] == [
        f"{panel}/less x3 seed {seed}" for seed in (3, 4) for panel in ("two", "three")
    ]  # the budgets of soups
    less, more, soups = (runs["two", arm, 3, 3] for arm in ("less", "more", "soups"))
    assert less.trained == soups and less.method == "rewarded-soups" and less.rollouts == soups.rollouts == 3744
    assert less.settings == "of=soups decoding.kind=scaled decoding.factor=0.8"
    assert less.config.compared == ("reference", "soups", "less") and less.config.training == soups.config.training
    assert less.shared_hash == soups.shared_hash
    # of the trained run and the decoding, whatever the arms are called; the trained runs are what they were
    assert len({less.config_hash, more.config_hash, soups.config_hash}) == 3
    assert all(runs[key].config_hash == run.config_hash for key, run in before.items() if key in runs)
    values["arms"] = {"a": {"method": "rewarded-soups", "rollouts": "per_expert"}, "b": SCALED | {"of": "a"}}
    assert runs_of(values)["two", "b", 3, 4].config_hash == less.config_hash
    values["arms"]["a"]["training"] = {"learning_rate": 1e-3}
    assert runs_of(values)["two", "b", 3, 4].config_hash != less.config_hash


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"of": "soup"}, "arms.x.of: soup is no trained arm of panel three; trained are clp-full, groups-of-8, smoothed, soups"),
        ({"of": "x"}, "arms.x.of: x is no trained arm of panel three"),
        ({"method": "clp-full"}, "arms.x.method: unknown key"),
        ({"decoding": {"kind": "best_of", "samples": 4}}, "arms.x.decoding: best_of draws from the reference policy, not from a"),
        ({"decoding": {"kind": "scaled", "factor": 0}}, "arms.x.decoding.factor: input should be greater than 0, but found 0"),
        ({"decoding": {"kind": "scale"}}, "arms.x.decoding: expected a kind among"),
        ({"of": "smoothed", "budgets": [1, 3]}, "arms.x.budgets: arm smoothed has no runs of 3; remove it, or add it there"),
        ({"budgets": [1, 1]}, "arms.x.budgets: 1 is there twice"),
    ],
)  # fmt: skip
def test_a_wrong_arm_of_another_is_one_line(tmp_path, arm, message):
    file = tmp_path / "wrong.yaml"
    YAML(typ="safe", pure=True).dump(VALUES | {"arms": VALUES["arms"] | {"x": SCALED | arm}}, file)
    with pytest.raises(UsageError) as raised:
        load_study(str(file))
    line = str(raised.value)
    assert message in line and line.startswith(f"{file}: ") and "\n" not in line


def test_a_decoding_that_the_trained_arm_does_not_take_is_one_line():
    values = copy.deepcopy(VALUES)
    values["arms"]["x"] = {"of": "smoothed", "decoding": {"kind": "kl_strength", "alpha": 0.2}}
    with pytest.raises(UsageError, match=r"^arms.x: derived.x.decoding.kind: kl_strength needs several rewards"):
        runs_of(values)


def test_a_run_that_is_there_with_other_settings_is_named():
    run = runs_of(VALUES)["two", "clp-full", 1, 3]
    row = dict(zip(("study", "panel", "arm", "budget", "seed"), run.key, strict=True))
    same, other = ({**row, "config": config} for config in (run.config_hash[:12], "0" * 12))
    assert outstanding([run], Tables([same], {}, {}), REPOSITORY) == []
    with pytest.raises(
        ClpError, match=r"two/clp-full x1 seed 3 of study s was run with other settings \(config 000000000000, now"
    ):
        outstanding([run], Tables([other], {}, {}), REPOSITORY)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seeds", [3, 4, 3], "seeds: 3 is there twice; name each once"),
        ("seeds", [], "seeds: list should have at least 1 item"),
        ("budgets", [1, 0], "input should be greater than 0, but found 0"),
        ("budgets", [1, 1.0], "budgets: 1 is there twice"),
        ("arms.soups.budgets", [2, 2], "arms.soups.budgets: 2 is there twice"),
        ("split", "train", "split: input should be 'validation' or 'test', but found 'train'"),
        ("panels", {}, "panels: dictionary should have at least 1 item"),
        ("panels.two.recipe", None, "panels.two.recipe: input should be a valid string"),
        ("arms", {}, ": no arm; name some under arms"),
        ("arms.soups.steps", 5, "arms.soups.steps: unknown key"),
        ("arms.soups.training", {"steps": 5}, "training.steps of an arm: they follow from budgets; remove it"),
        ("arms.soups.training", {"seed": 5}, "training.seed of an arm: list it in seeds; remove it"),
        ("question", None, "question: "),
    ],
)  # fmt: skip
def test_a_wrong_value_of_a_study_is_one_line(tmp_path, path, value, message):
    values = copy.deepcopy(VALUES)
    *sections, key = path.split(".")
    section = values
    for name in sections:
        section = section[name]
    section[key] = value
    file = tmp_path / "wrong.yaml"
    YAML(typ="safe", pure=True).dump(values, file)
    with pytest.raises(UsageError) as raised:
        load_study(str(file))
    line = str(raised.value)
    assert message in line and line.startswith(f"{file}: ") and "\n" not in line


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"method": "soups"}, "arms.x.method: recipe default has no soups; it has clp-full, rewarded-soups"),
        ({"method": FULL}, "arms.x: methods.x.weightings: missing"),
        ({"method": "clp-full", "training": {"learning_rate": 2.0}}, "arms.x: training.learning_rate: input should be less"),
        ({"method": "clp-full", "training": {"momentum": 1}}, "arms.x: training.momentum: unknown key"),
        ({"method": "clp-full", "budgets": [0.01]}, "budget 0.01 of arm x: 6.24 rollouts are no step, which takes 24; raise it"),
    ],
)  # fmt: skip
def test_a_wrong_arm_is_one_line(arm, message):
    values = VALUES | {"panels": {"two": {"recipe": "default"}}, "arms": {"x": arm}}
    with pytest.raises(UsageError) as raised:
        runs_of(values)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_studies_that_are_not_there():
    with pytest.raises(UsageError, match=r"study 'lost': no such file .*lost.yaml; studies here: "):
        load_study("lost", REPOSITORY)
    with pytest.raises(UsageError, match="recipe 'lost': no such file"):
        runs_of(VALUES | {"panels": {"a": {"recipe": "lost"}}})


@pytest.mark.parametrize("name", studies(REPOSITORY))
def test_every_study_of_the_repository_can_be_planned(name):
    called, study = load_study(name, REPOSITORY)
    assert called == name and len(plan(name, study, REPOSITORY)) > 1
