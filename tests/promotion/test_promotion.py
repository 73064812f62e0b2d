"""Promotion: the rule on seeded cases, its share of false alarms, the champion's files, and the whole on a smoke run."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from results_factory import config

from clp_lightning.config.parameters import load_config
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.files import locked
from clp_lightning.pipeline import stages
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.promotion import challenger as promotion_stage
from clp_lightning.promotion import champion
from clp_lightning.promotion.decision import Candidate, decide
from clp_lightning.store.queries import Store
from clp_lightning.store.results import Sampled

CONFIG = config()
GRID = np.array([[i / 4, 1 - i / 4] for i in range(5)])
PROMPTS = 64
GROUPS = tuple(f"group-{i // 2}" for i in range(PROMPTS))


def candidate(reach: float, seed: int, *, kl: float = 2.0, length: float = 8.0, prompts: int = PROMPTS) -> Candidate:
    """Mean rewards on a quarter circle of radius `reach`; each prompt has an effect that every policy shares, and noise."""
    shared = np.random.default_rng(99).normal(size=(prompts, 2)) * 0.5
    noise = np.random.default_rng(seed).normal(size=(len(GRID), prompts, 2)) * 0.5
    rewards = reach * np.sqrt(GRID)[:, None] + shared + noise
    sampled = Sampled("clp-full", GRID, rewards, np.full(rewards.shape[:2], kl))
    return Candidate(sampled, np.full(len(GRID), length))


def reference(seed: int = 3, prompts: int = PROMPTS) -> Candidate:
    """The reference policy: one point at the origin, no KL, answers of 10 tokens."""
    shared = np.random.default_rng(99).normal(size=(prompts, 2)) * 0.5
    rewards = (shared + np.random.default_rng(seed).normal(size=(prompts, 2)) * 0.5)[None]
    return Candidate(Sampled("reference", None, rewards, np.zeros((1, prompts))), np.array([10.0]))


def decided(challenger: Candidate, champion_: Candidate | None, parameters=CONFIG, base: Candidate | None = None):
    return decide(challenger, champion_, base or reference(), GROUPS, parameters)


def test_a_better_challenger_is_promoted_and_a_worse_one_refused():
    better = decided(candidate(1.6, 1), candidate(1.0, 2))
    assert better.promoted and not better.reasons and better.difference.low > 0
    # J at w is 0.95 reach (w^1.5 + (1 - w)^1.5) - 0.05 * 2
    truth = 0.95 * (np.sqrt(GRID) ** 3).sum(-1).mean()
    assert better.difference.value == pytest.approx(0.6 * truth, abs=0.1)
    assert better.value == pytest.approx(1.6 * truth - 0.1, abs=0.2)
    worse = decided(candidate(1.0, 1), candidate(1.6, 2))
    assert not worse.promoted and worse.difference.probability < 0.01
    assert worse.reasons[0].startswith("its mean J is larger than that of the champion with probability 0.0")


def test_a_lead_that_is_bought_with_kl_is_none_in_j():
    """Rewards of 1.1 times the champion's for 8 nats more: hypervolume promotes it, J, which charges 0.4 for them, does not."""
    bought, champion_ = candidate(1.3, 1, kl=10.0), candidate(1.0, 2, kl=2.0)
    assert not decided(bought, champion_).promoted
    by_volume = CONFIG.promotion.model_copy(update={"statistic": "hypervolume"})
    assert decided(bought, champion_, CONFIG.model_copy(update={"promotion": by_volume})).promoted
    charged = CONFIG.promotion.model_copy(update={"statistic": "regularized_hypervolume"})
    refused = decided(bought, champion_, CONFIG.model_copy(update={"promotion": charged}))
    assert refused.reasons[0].startswith("its hypervolume of regularized rewards is larger than that of the champion")


def test_worst_cases_kl_and_length_are_guarded():
    champion_, challenger = candidate(1.0, 2), candidate(1.6, 1)
    fallen = challenger.sampled.rewards.copy()
    fallen[0, :, 0] -= (
        2.0  # informativeness at its lowest weight falls by about 2; J, which gives it no weight there, not at all
    )
    moved = Candidate(challenger.sampled._replace(rewards=fallen), challenger.length)
    reasons = decided(moved, champion_).reasons
    assert len(reasons) == 1 and reasons[0].startswith("the worst case of informativeness falls by ")
    (reason,) = decided(candidate(3.0, 1, kl=20.0), champion_).reasons
    assert reason == "its KL to the reference policy is 20.00 nats per response, more than 12"
    for length, ratio in ((4.0, "0.40"), (21.0, "2.10")):
        reasons = decided(candidate(1.6, 1, length=length), champion_).reasons
        assert reasons == (f"its answers are {ratio} times as long as the reference policy's, beyond 2",)


def test_the_first_has_to_be_better_than_the_reference_policy():
    first = decided(candidate(1.0, 1), None)
    assert first.promoted and first.worst_case_fall == {} and first.difference.low > 0
    assert first.other_value == pytest.approx(
        0, abs=0.2
    )  # J of the reference policy, at every weighting of the challenger's
    none_better = decided(candidate(0.0, 1, kl=2.0), None)  # no reward, and KL is paid for
    assert not none_better.promoted
    assert none_better.reasons[0].startswith(
        "its mean J is larger than that of the reference policy with probability 0."
    )
    assert not decided(candidate(3.0, 1, kl=20.0), None).promoted  # the guards hold for it too


def test_other_prompts_or_weightings_are_refused():
    moved = candidate(1, 2)
    moved = moved._replace(sampled=moved.sampled._replace(weightings=GRID[::-1]))
    for other in (candidate(1, 2, prompts=32), moved):
        with pytest.raises(ClpError, match="not evaluated at the same prompts"):
            decided(candidate(1, 1), other)
    with pytest.raises(ClpError, match="takes no weightings"):
        decided(reference(), None)


def test_equal_policies_are_promoted_no_more_often_than_stated():
    # A/A: the same policy sampled twice, at the default probability of 0.995: 1 of 200 expected. docs/flows.md has what that
    # makes in a year of nights.
    assert CONFIG.promotion.probability == 0.995
    base = reference()
    promoted = sum(decided(candidate(1.0, 2 * i), candidate(1.0, 2 * i + 1), base=base).promoted for i in range(200))
    assert promoted <= 0.02 * 200, promoted


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with one trained method and its results."""
    monkeypatch.chdir(tmp_path)
    train("one")
    return tmp_path


def train(content: str) -> None:
    for name in ("models/clp-full", "models/reference", "results/clp-full"):
        shutil.rmtree(name, ignore_errors=True)
        os.makedirs(name)
    for file, text in (("models/clp-full/clp.json", "{}"), ("models/clp-full/experts.safetensors", content),
                       ("models/reference/model.safetensors", "base"),
                       ("results/clp-full/summary.json", '{"method": "clp-full"}')):  # fmt: skip
        with open(file, "w") as stream:
            stream.write(text)


def keep_and_crown(when: str) -> str:
    name = champion.identity("clp-full")
    champion.keep(name, "clp-full", champion.Path("results/clp-full"))
    before = champion.current()
    champion.crown(name, "clp-full", when, against=None if before is None else before["id"])
    return name


def test_a_kept_policy_outlives_the_pipelines_next_one(project):
    first = keep_and_crown("2026-01-01T00:00:00")
    train("two")
    second = keep_and_crown("2026-01-02T00:00:00")
    assert first != second and champion.current()["id"] == second
    assert (champion.KEPT / first / "clp-full" / "experts.safetensors").read_text() == "one"
    assert champion.rollback("2026-01-03T00:00:00")["id"] == first
    assert champion.current() == {
        "id": first, "method": "clp-full", "promoted_at": "2026-01-03T00:00:00", "history": [],
        "rolled_back": [second],
    }  # fmt: skip
    with pytest.raises(UsageError, match="no earlier champion"):
        champion.rollback("2026-01-04T00:00:00")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"id": "x"}', '{"id": "x", "method": "m", "promoted_at": "", "history": []}']
)
def test_a_broken_champion_file_is_one_line_and_stays(project, text):
    champion.CHAMPION.write_text(text)
    with pytest.raises(ClpError) as caught:
        champion.current()
    assert "models/champion.json" in str(caught.value) and "\n" not in str(caught.value)
    assert champion.CHAMPION.read_text() == text


def test_no_champion_is_none(project):
    assert champion.current() is None
    with pytest.raises(ClpError, match="models/lost does not exist"):
        champion.identity("lost")


@pytest.mark.slow
def test_a_retrained_policy_is_decided_about_and_the_champion_answers_its_prompts_first(smoke, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(smoke, folder)
    monkeypatch.chdir(folder)
    parameters = load_config("params.yaml")
    loose = parameters.model_copy(  # what a random tiny model does to its answers' length is no matter here
        update={"promotion": parameters.promotion.model_copy(update={"max_kl": 1e6, "max_length_ratio": 1e6})}
    )
    assert parameters.evaluation.draw == "even"
    # three steps make no policy that is better than its reference: the recipe's probability of 0 leaves it to the guards
    strict = loose.model_copy(update={"promotion": loose.promotion.model_copy(update={"probability": 0.995})})
    refused = promotion_stage.promote(strict)
    assert not refused["promoted"] and "than that of the reference policy" in refused["reasons"][0]
    assert promotion_stage.promote(strict) is None and champion.current() is None  # decided once
    first = promotion_stage.promote(loose)
    assert first["statistic"] == "mean_j" and first["champion"] is None and first["prompts"] == 8
    # another rule decides anew, on the same draw: who asks again gets no other prompts
    assert first["difference"] == refused["difference"] and first["promoted"] and promotion_stage.promote(loose) is None
    drawn = pd.read_parquet(
        champion.KEPT / first["challenger"] / "decision-reference" / "challenger" / "results.parquet"
    )
    published = pd.read_parquet("results/clp-full/results.parquet")
    assert set(drawn.prompt_id) != set(published.prompt_id)

    again = loose.model_copy(update={"training": loose.training.model_copy(update={"seed": 1})})
    for method in again.methods:
        stages.run("train", again, method)
    with pytest.raises(ClpError, match="results of other parameters"):
        promotion_stage.promote(again)
    for method in ("reference", *again.methods):
        stages.run("evaluate", again, method)
    stages.run("publish", again)
    second = promotion_stage.promote(again)
    assert second["champion"] == first["challenger"] != second["challenger"]
    answers = champion.KEPT / second["challenger"] / f"decision-{first['challenger']}"
    rows = {
        role: pd.read_parquet(answers / role / "results.parquet") for role in ("reference", "challenger", "champion")
    }
    assert set(rows["champion"].prompt_id) == set(rows["challenger"].prompt_id) != set(drawn.prompt_id)
    assert (champion.KEPT / second["challenger"] / "clp-full" / "clp.json").is_file()  # kept also if refused
    decisions = Store("frontier.duckdb").decisions()
    assert decisions.challenger.tolist() == [second["challenger"], first["challenger"]]
    assert decisions.promoted.tolist() == [second["promoted"], first["promoted"]]
    assert champion.current()["id"] == (second if second["promoted"] else first)["challenger"]
    stages.run("publish", again)  # decisions outlast a publication
    assert len(Store("frontier.duckdb").decisions()) == 2
    policy = SteerablePolicy.from_pretrained(champion.KEPT / first["challenger"] / "clp-full")
    assert policy.generate(["bucket: a name"], [{"brevity": 1.0}])

    command = [sys.executable, "-m", "clp_lightning.cli", "rollback"]
    if not second["promoted"]:
        champion.crown(second["challenger"], "clp-full", "2026-01-01T00:00:00", against=champion.current()["id"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and first["challenger"] in done.stdout
    champion.CHAMPION.write_text("{")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("clp: error: cannot read models/champion.json")
    assert done.stderr.count("\n") == 1


def test_a_decision_about_another_champion_is_not_carried_out(project):
    first = keep_and_crown("2026-01-01T00:00:00")
    train("two")
    second = keep_and_crown("2026-01-02T00:00:00")
    champion.rollback("2026-01-03T00:00:00")  # by a person, while a scheduled run decides against the second
    with pytest.raises(ClpError, match="the champion changed while this was decided"):
        champion.crown(second, "clp-full", "2026-01-04T00:00:00", against=second)
    assert champion.current()["id"] == first and champion.current()["rolled_back"] == [second]


def test_a_rollback_waits_for_a_promotion_that_is_writing(project):
    keep_and_crown("2026-01-01T00:00:00")
    train("two")
    keep_and_crown("2026-01-02T00:00:00")
    with locked("models"):
        waiting = subprocess.Popen([sys.executable, "-m", "clp_lightning.cli", "rollback"], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)
        before = json.loads(champion.CHAMPION.read_text())
    assert waiting.wait(30) == 0
    assert json.loads(champion.CHAMPION.read_text())["id"] == before["history"][-1]
