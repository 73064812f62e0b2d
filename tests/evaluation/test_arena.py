"""Every kind of method on one smoke run: what is known about each holds in its results."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import DOCUMENTS, GENERATION, OBJECTIVES, make_policy, write_model

from clp_lightning.config.derived import Merged
from clp_lightning.config.parameters import Config, load_config
from clp_lightning.errors import UsageError
from clp_lightning.evaluation.merged import MergedPolicy
from clp_lightning.evaluation.results import sweep
from clp_lightning.evaluation.sweep import Sweep, _best
from clp_lightning.pipeline import stages
from clp_lightning.store.queries import Store

SOUPS = {"of": "rewarded-soups"}
DERIVED = {
    "logit-mixing": SOUPS | {"decoding": {"kind": "logit_mixing"}},
    "ties": SOUPS | {"decoding": {"kind": "merged", "operator": "ties", "density": 0.5}},
    "dare": SOUPS | {"decoding": {"kind": "merged", "operator": "dare", "density": 0.5}},
    "ram": SOUPS | {"decoding": {"kind": "merged", "operator": "ram", "epsilon": 0.001}},
    "bone-soups": {"of": "backbones", "decoding": {"kind": "bone_soups", "extrapolation": 0.0}},
    "best-of-1": {"of": "reference", "decoding": {"kind": "best_of", "samples": 1}},
    "best-of-4": {"of": "reference", "decoding": {"kind": "best_of", "samples": 4}},
    "dera-policy": {"of": "clp-full", "decoding": {"kind": "dera", "strength": 0.0}},
    "scaled-by-1": {"of": "clp-full", "decoding": {"kind": "scaled", "factor": 1.0}},
    "dera-reference": {"of": "clp-full", "decoding": {"kind": "dera", "strength": 1.0}},
}
TRAINED = ("morlhf", "backbones", "clp-prompt", "parm", "panacea")
LISTED = [{"informativeness": 1.0, "brevity": 0.0}, {"informativeness": 0.25, "brevity": 0.75}]


@pytest.fixture(scope="module")
def arena(smoke, tmp_path_factory):
    """The smoke run with every other kind of method added: folder, config, results by method."""
    folder = Path(shutil.copytree(smoke, tmp_path_factory.mktemp("arena") / "project"))
    values = load_config(folder / "params.yaml").model_dump()
    full = values["methods"]["clp-full"] | {"relabel": False}
    values["methods"]["morlhf"] = full | {"weightings": {"kind": "listed", "each": LISTED}}
    values["methods"]["backbones"] = full | {"weightings": {"kind": "backbones", "beta": 0.75}}
    values["methods"]["clp-prompt"] = full | {"conditioning": "none", "shared": True, "prompted": True}
    for name, kind in (("parm", "bilinear"), ("panacea", "singular")):
        values["methods"][name] = full | {"parameterization": kind}
    config = Config.model_validate(values | {"derived": DERIVED})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in TRAINED:
            stages.run("train", config, method)
        for method in (*TRAINED, *DERIVED):
            stages.run("evaluate", config, method)
        stages.run("publish", config)
    results = {name: pd.read_parquet(folder / "results" / name / "results.parquet") for name in config.compared}
    return folder, config, results


def answers(rows, weight=None):
    chosen = rows if weight is None else rows[rows["w:informativeness"] == weight]
    return chosen.sort_values("prompt_id", kind="stable").response.tolist()


def test_a_policy_conditioned_on_alpha_is_compared_at_several_kl_strengths(smoke, tmp_path, monkeypatch):
    """At alpha = 1 every coefficient (1 - alpha) w is 0, so the answers are the reference policy's; at the lowest they are
    those of the method itself, which is evaluated there."""
    folder = Path(shutil.copytree(smoke, tmp_path / "project"))
    values = load_config(folder / "params.yaml").model_dump()
    values["training"] |= {"alpha_high": 1.0, "learning_rate": 0.05}  # three steps that change some answer
    strengths = {"at-low": values["training"]["alpha"], "at-one": 1.0}
    values["derived"] = {
        name: {"of": "clp-full", "decoding": {"kind": "kl_strength", "alpha": alpha}}
        for name, alpha in strengths.items()
    }
    monkeypatch.chdir(folder)
    config = Config.model_validate(values)
    stages.run("train", config, "clp-full")
    for method in ("clp-full", *strengths):
        stages.run("evaluate", config, method)
    results = {
        name: pd.read_parquet(f"results/{name}/results.parquet") for name in ("reference", "clp-full", *strengths)
    }
    assert answers(results["at-low"]) == answers(results["clp-full"]) != answers(results["at-one"])
    for weight in results["at-one"]["w:informativeness"].unique():
        assert answers(results["at-one"], weight) == answers(results["reference"])
    values["derived"]["at-one"]["decoding"]["alpha"] = 0.01
    with pytest.raises(
        ValueError, match=r"alpha: 0\.01 is outside of the KL strengths that training draws, 0\.05 to 1; choose"
    ):
        Config.model_validate(values)


def test_logit_mixing_at_a_vertex_is_that_expert(arena):
    _, _, results = arena
    for weight in (0.0, 1.0):
        assert answers(results["logit-mixing"], weight) == answers(results["rewarded-soups"], weight)


def test_bone_soups_solve_for_the_backbones_coefficients(arena):
    # M = (3/4, 1/4; 1/4, 3/4), M' c = w: c = (1/2, 1/2) at (1/2, 1/2), (3/2, -1/2) at (1, 0)
    folder, config, results = arena
    assert answers(results["bone-soups"], 0.5) == answers(results["backbones"], 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        contestant, _ = sweep(config, "bone-soups")
    members, shares = contestant.policy.mixture(contestant.policy.coefficients({"informativeness": 1.0}, 2))
    torch.testing.assert_close(members, torch.tensor([[[1.5, -0.5]] * 2]))
    assert shares.tolist() == [[1, 1]] and contestant.cost["forward_passes_per_token"] == 1


def test_best_of_one_is_sampling(arena):
    _, _, results = arena
    for weight in (0.0, 0.5, 1.0):
        assert answers(results["best-of-1"], weight) == answers(results["reference"])
    assert (results["best-of-1"]["monitor:kl"] == 0).all()


def test_best_of_several_keeps_the_largest_scalarized_reward(arena):
    _, _, results = arena
    means = results["best-of-4"].groupby("w:informativeness")[["reward:informativeness", "reward:brevity"]].mean()
    # the same four answers at every weighting: each end is best at its own objective
    assert means["reward:informativeness"].idxmax() == 1.0
    assert means["reward:brevity"].idxmax() == 0.0
    # log 4 - 3/4
    assert results["best-of-4"]["monitor:kl"].unique() == pytest.approx(0.63629, abs=1e-5)


def test_the_first_of_equal_answers_is_kept(tmp_path):
    scores = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 5.0], [3.0, 3.0]])
    sweep = Sweep(pd.DataFrame(), None, lambda documents, answers: scores, 1, 1, 0, tmp_path, best_of=2)
    drawn = pd.DataFrame({"document": list("aabb"), "response": list("wxyz")})
    # w = (1, 0): of (0, 1) the second, of (1, 3) the second; w = (.5, .5): of (.5, .5) the first, of (3, 3) the first
    assert _best(drawn, np.array([1.0, 0.0]), sweep).response.tolist() == ["x", "z"]
    assert _best(drawn, np.array([0.5, 0.5]), sweep).response.tolist() == ["w", "y"]


def test_dera_at_its_ends_is_policy_and_reference(arena):
    _, _, results = arena
    for weight in (0.0, 0.5, 1.0):
        assert answers(results["dera-policy"], weight) == answers(results["clp-full"], weight)
        assert answers(results["scaled-by-1"], weight) == answers(results["clp-full"], weight)
        assert answers(results["dera-reference"], weight) == answers(results["reference"])


def test_one_model_per_listed_weighting(arena):
    folder, config, results = arena
    points = results["morlhf"].groupby("weighting_id")[["w:informativeness", "w:brevity"]].first()
    assert points.to_numpy().tolist() == [[1.0, 0.0], [0.25, 0.75]]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        contestant, _ = sweep(config, "morlhf")
    assert contestant.cost["models"] == 2
    with pytest.raises(
        UsageError, match=r"no model for informativeness=0\.5,brevity=0\.5; this policy holds one for each of"
    ):
        contestant.policy.generate(["text"], {"informativeness": 0.5, "brevity": 0.5})


def test_costs_say_how_many_forward_passes_a_token_takes(arena):
    folder, _, _ = arena
    store = Store(folder / "frontier.duckdb")
    methods = store.methods(store.run()["run_id"]).set_index("method")
    assert methods.problem.isna().all()
    passes = methods.forward_passes_per_token
    assert passes[["clp-full", "ties", "ram", "morlhf", "reference"]].tolist() == [1] * 5
    assert passes[["logit-mixing", "dera-policy", "best-of-4"]].tolist() == [2, 2, 4]
    assert methods.rollouts["logit-mixing"] == methods.rollouts["rewarded-soups"]
    assert methods.weights_hash["logit-mixing"] == methods.weights_hash["rewarded-soups"]
    stored = (
        methods.stored_parameters
    )  # at rank 2 and K = 2: one update and a core instead of two; 2 + 2 singular values
    assert stored["parm"] < 0.6 * stored["clp-full"] and stored["panacea"] < 1.1 * stored["clp-full"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(write_model("llama", tmp_path_factory.mktemp("model")))


def merged_policy(policy, **operator) -> MergedPolicy:
    made = MergedPolicy(policy.model, policy.tokenizer, GENERATION, objectives=OBJECTIVES, experts=policy.experts)
    made.operator = Merged(kind="merged", **operator)
    return made


@pytest.mark.parametrize(
    "operator",
    [{"operator": "dare", "density": 1.0}, {"operator": "ram", "epsilon": 9.0}],
    ids=lambda settings: settings["operator"],
)
def test_an_operator_that_keeps_everything_is_the_average_and_the_model_is_restored(policy, operator):
    before = policy.log_probs(DOCUMENTS, ["makes a bucket"] * 3, None)[0]
    merged = merged_policy(policy, **operator)
    for weights in ({"a": 1.0}, {"a": 0.3, "b": 0.7}):
        expected = policy.log_probs(DOCUMENTS, ["makes a bucket"] * 3, weights)[0]
        torch.testing.assert_close(
            merged.log_probs(DOCUMENTS, ["makes a bucket"] * 3, weights)[0], expected, atol=1e-4, rtol=0
        )
    torch.testing.assert_close(policy.log_probs(DOCUMENTS, ["makes a bucket"] * 3, None)[0], before, atol=0, rtol=0)
    with pytest.raises(UsageError, match="a merged policy takes one at a time"):
        merged.generate(DOCUMENTS[:2], [{"a": 1.0}, {"b": 1.0}])
