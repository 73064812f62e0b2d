"""Promotion: the rule on seeded cases, its share of false alarms, the champion's files, and the whole on a smoke run."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
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

CONFIG = config()
GRID = np.array([[i / 4, 1 - i / 4] for i in range(5)])


def candidate(reach: float, seed: int, *, kl: float = 2.0, length: float = 8.0, prompts: int = 64) -> Candidate:
    """Mean rewards on a quarter circle of radius `reach`; each prompt has an effect that every policy shares, and noise."""
    shared = np.random.default_rng(99).normal(size=(prompts, 2)) * 0.5
    noise = np.random.default_rng(seed).normal(size=(len(GRID), prompts, 2)) * 0.5
    rewards = reach * np.sqrt(GRID)[:, None] + shared + noise
    return Candidate(GRID, rewards, np.full(len(GRID), kl), np.full(len(GRID), length))


def test_a_better_challenger_is_promoted_and_a_worse_one_refused():
    better = decide(candidate(1.6, 1), candidate(1.0, 2), 10, CONFIG)
    assert better.promoted and not better.reasons and better.difference.low > 0
    worse = decide(candidate(1.0, 1), candidate(1.6, 2), 10, CONFIG)
    assert not worse.promoted and worse.difference.probability < 0.01
    assert worse.reasons[0].startswith("its hypervolume is the larger one with probability 0.0")


def test_worst_cases_kl_and_length_are_guarded():
    champion_, challenger = candidate(1.0, 2), candidate(1.6, 1)
    fallen = challenger.rewards.copy()
    fallen[0, :, 0] -= 2.0  # informativeness at its lowest weight falls by about 2; the hypervolume hardly notices
    reasons = decide(challenger._replace(rewards=fallen), champion_, 10, CONFIG).reasons
    assert len(reasons) == 1 and reasons[0].startswith("the worst case of informativeness falls by ")
    assert decide(candidate(1.6, 1, kl=99.0), champion_, 10, CONFIG).reasons == (
        "its KL to the reference policy is 99.00 nats per response, more than 12",
    )
    for length, ratio in ((4.0, "0.40"), (21.0, "2.10")):
        reasons = decide(candidate(1.6, 1, length=length), champion_, 10, CONFIG).reasons
        assert reasons == (f"its answers are {ratio} times as long as the reference policy's, beyond 2",)


def test_the_first_is_promoted_unless_a_guard_stops_it():
    first = decide(candidate(1.0, 1), None, 10, CONFIG)
    assert first.promoted and first.difference is None and first.worst_case_fall == {}
    assert not decide(candidate(1.0, 1, kl=99.0), None, 10, CONFIG).promoted


def test_other_prompts_or_weightings_are_refused():
    with pytest.raises(ClpError, match="not evaluated at the same prompts"):
        decide(candidate(1, 1), candidate(1, 2, prompts=32), 10, CONFIG)
    with pytest.raises(ClpError, match="not evaluated at the same prompts"):
        decide(candidate(1, 1), candidate(1, 2)._replace(weightings=GRID[::-1]), 10, CONFIG)


def test_equal_policies_are_promoted_no_more_often_than_stated():
    # A/A: the same policy sampled twice. docs/flows.md states at most 5 % at the default probability of 0.975
    assert CONFIG.promotion.probability == 0.975
    promoted = sum(decide(candidate(1.0, 2 * i), candidate(1.0, 2 * i + 1), 10, CONFIG).promoted for i in range(200))
    assert promoted <= 0.05 * 200, promoted


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
    first = promotion_stage.promote(loose)
    assert first["promoted"] and first["champion"] is None and promotion_stage.promote(loose) is None

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
    assert (champion.KEPT / first["challenger"] / "results-now" / "results.parquet").is_file()  # another sampling seed
    assert (champion.KEPT / second["challenger"] / "clp-full" / "clp.json").is_file()  # kept also if refused
    decisions = Store("frontier.duckdb").decisions()
    assert decisions.challenger.tolist() == [second["challenger"], first["challenger"]]
    assert decisions.promoted.tolist() == [second["promoted"], True]
    assert champion.current()["id"] == (second if second["promoted"] else first)["challenger"]
    stages.run("publish", again)  # decisions outlast a publication
    assert len(Store("frontier.duckdb").decisions()) == 2
    policy = SteerablePolicy.from_pretrained(champion.KEPT / first["challenger"] / "clp-full")
    assert policy.generate(["bucket: a name"], [{"brevity": 1.0}])

    command = [sys.executable, "-m", "clp_lightning.cli", "rollback"]
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
