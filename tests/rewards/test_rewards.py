import numpy as np
import pytest

from clp_lightning.config.parameters import load_config
from clp_lightning.errors import ClpError
from clp_lightning.rewards.models import Learned
from clp_lightning.rewards.reward_set import Monitors, RewardSet, distinct_2, measure_normalization
from clp_lightning.rewards.text import Brevity


def test_brevity_counts_words_down_to_the_floor():
    assert Brevity(3)(["d"] * 3, ["one two three four five", "one", ""]).tolist() == [-5, -3, -3]


def test_normalization_golden():
    # a: mean 2, deviation sqrt(((1-2)^2 + (3-2)^2) / 1) = sqrt 2;  normalized (3 - 2) / sqrt 2
    measured = measure_normalization(np.array([[1.0, 5.0], [3.0, 7.0]]), ("a", "b"))
    assert measured["objectives"]["a"] == {"mean": 2.0, "std": pytest.approx(2**0.5)}
    rewards = RewardSet({"a": lambda d, r: np.full(len(r), 3.0)}, measured)
    assert rewards(["x"], ["y"]) == pytest.approx(np.array([[1 / 2**0.5]]))


def test_constant_or_broken_rewards_are_named():
    with pytest.raises(ClpError, match="reward b is the same for all 2"):
        measure_normalization(np.array([[1.0, 5.0], [3.0, 5.0]]), ("a", "b"))
    with pytest.raises(ClpError, match="reward b gave a value that is not finite"):
        measure_normalization(np.array([[1.0, np.nan], [3.0, 5.0]]), ("a", "b"))

    def raises(documents, responses):
        raise ZeroDivisionError("oh")

    for reward, message in (
        (raises, "reward mine failed: ZeroDivisionError: oh"),
        (lambda d, r: np.ones((len(r), 1)), r"reward mine returned shape \(2, 1\) for 2 responses"),
        (lambda d, r: np.array([1.0, np.nan]), r"reward mine returned nan for response 2 \('second'\)"),
    ):
        with pytest.raises(ClpError, match=message):
            RewardSet({"mine": reward}).raw(["d", "d"], ["first", "second"])
    with pytest.raises(ClpError, match="normalization lacks mine"):
        RewardSet({"mine": raises}, {"objectives": {}})
    with pytest.raises(ClpError, match="have no normalization yet"):
        RewardSet({"mine": raises})([], [])


def test_references_reach_the_rewards_that_read_them():
    class Copies:
        needs_references = True

        def __call__(self, documents, responses, references):
            return np.array([float(a == b) for a, b in zip(responses, references, strict=True)])

    rewards = RewardSet({"short": Brevity(1), "copies": Copies()}, references={"d1": "one", "d2": "two"})
    assert rewards.raw(["d2", "d1"], ["two", "two"]).tolist() == [[-1, 1], [-1, 0]]
    assert rewards.raw(["d2", "d9"], ["a", "b"], references=["a", "b"]).tolist() == [[-1, 1], [-1, 1]]  # per row
    for documents, own in ((["d1", "unknown"], None), (["d1", "unknown"], ["one", " "])):
        with pytest.raises(ClpError, match=r"reward copies reads the reference summary, and 'unknown' has none; take"):
            rewards.raw(documents, ["a", "b"], own)
    assert RewardSet({"short": Brevity(1)}).raw(["unknown"], ["a"]).tolist() == [[-1]]  # reads none: needs none
    assert rewards.raw([], []).shape == (0, 2)


def test_missing_reward_model_is_one_line(tmp_path):
    with pytest.raises(ClpError, match=r"no reward model at .*; run the stage reward_model"):
        Learned(tmp_path)(["a"], ["b"])


def test_distinct_2_golden():
    assert distinct_2("a b a b") == pytest.approx(2 / 3)  # bigrams ab, ba, ab
    assert distinct_2("word") == 1.0


def test_monitors_rank_a_copy_over_another_text():
    values = Monitors.from_config(load_config("params.yaml"))(
        ["delete bucket: removes the bucket"] * 2,
        ["Removes the bucket."] * 2,
        ["Removes the bucket.", "Cats sleep at noon."],
    )
    assert values["rouge_l"].tolist() == [1.0, 0.0]
    assert values["coverage"][0] > 0.5 > values["coverage"][1]
    assert values["distinct_2"].tolist() == [1.0, 1.0]
