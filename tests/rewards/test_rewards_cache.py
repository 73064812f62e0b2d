"""Caches: the same values with and without, in memory and on disk, also from files that something has damaged."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from locations import DEFAULT

from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.rewards.cache import Cache, key
from clp_lightning.rewards.reward_set import RewardSet

ROWS = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=1, max_size=12)


class Counting:
    """Scores by content, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, documents, responses):
        self.asked += list(zip(documents, responses, strict=True))
        return np.array([len(d) / 3 - len(r) / 7 for d, r in zip(documents, responses, strict=True)])


@given(ROWS, ROWS)
def test_a_cache_changes_no_value_and_asks_each_text_once(first, second):
    plain, counted = Counting(), Counting()
    cached = RewardSet({"x": counted}, caches={"x": Cache()})
    for rows in (first, second, first):
        texts = [list(column) for column in zip(*rows, strict=True)]
        assert cached.raw(*texts).tolist() == RewardSet({"x": plain}).raw(*texts).tolist()
    assert sorted(counted.asked) == sorted(set(first) | set(second))


def test_texts_are_told_apart_by_where_they_end():
    assert key(("a", "bc")) != key(("ab", "c")) and key(("a", "b")) != key(("a", "b", ""))


def test_disk_cache_serves_another_process_exactly(tmp_path):
    file = tmp_path / "made" / "x.jsonl"
    rows = [("d", str(number)) for number in range(5)]
    scores = np.array([0.1, 1 / 3, -1e-300, 2**60, 5e-324])
    assert Cache(file).scores(rows, lambda new: scores[new]).tolist() == scores.tolist()
    again = Cache(file).scores(rows, lambda new: pytest.fail("asked again"))
    assert again.tolist() == scores.tolist()


def test_what_failed_is_not_kept(tmp_path):
    answers = iter([np.array([1.0, np.nan]), np.array([1.0, 2.0])])
    rewards = RewardSet({"x": lambda d, r: next(answers)}, caches={"x": Cache(tmp_path / "x")})
    with pytest.raises(ClpError, match=r"reward x returned nan for response 2 \('b'\)"):
        rewards.raw(["d", "d"], ["a", "b"])
    assert not (tmp_path / "x").exists()
    assert rewards.raw(["d", "d"], ["a", "b"]).tolist() == [[1], [2]]


def test_a_damaged_file_loses_the_damaged_lines_only(tmp_path):
    file = tmp_path / "x"
    entry = json.dumps({"key": key(("d", "good")), "score": 4.0})
    nan = json.dumps({"key": key(("d", "nan")), "score": float("nan")})
    file.write_bytes(f'{entry}\n[]\nnull\n{{"key": 3}}\n{nan}\n'.encode() + b'\xff\xfe\n{"key": "abc", "sc')  # cut off
    rows = [("d", "good"), ("d", "nan"), ("d", "new")]
    assert Cache(file).scores(rows, lambda new: np.array(new, dtype=float)).tolist() == [4, 1, 2]
    assert Cache(file).scores(rows, lambda new: pytest.fail("asked again")).tolist() == [4, 1, 2]


def _write(file, name):
    for number in range(40):
        score = np.array([float(number)])
        Cache(file).scores([(name, str(number))], score.__getitem__)


def test_processes_append_to_one_file(tmp_path):
    file, context = tmp_path / "x", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(file, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = [(name, str(number)) for name in "ab" for number in range(40)]
    found = Cache(file).scores(rows, lambda new: pytest.fail("lost"))
    assert found.tolist() == [*range(40), *range(40)]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClpError, match=r"cannot write .*/file/x: [FN].*; free space, or set cache: memory"):
        Cache(tmp_path / "file" / "x").scores([("d", "r")], lambda new: np.zeros(1))


def test_a_cache_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "x").write_text("")
    (tmp_path / "x").chmod(0)
    if os.access(tmp_path / "x", os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(ClpError, match=r"cannot read .*/x: Permission denied; fix its permissions or remove it"):
        Cache(tmp_path / "x").scores([("d", "r")], lambda new: np.zeros(1))


SCORER = "def score(documents, responses):\n    return [{} for _ in responses]\n"


def test_a_cache_on_disk_follows_the_keys_and_the_code(tmp_path: Path):
    def raw(**keys):
        section = {"kind": "python", "function": "cached_scorer:score", "cache": "disk"} | keys
        config = Config.model_validate({**DEFAULT, "rewards": {"x": section}})
        return RewardSet.from_config(config, tmp_path, None).raw(["d"], ["r"]).item()

    module, folder = tmp_path / "cached_scorer.py", tmp_path / "build" / "reward-cache" / "x"
    module.write_text(SCORER.format(1.5))
    assert raw() == raw(batch_size=3) == 1.5  # a batch size changes no score
    assert len(list(folder.iterdir())) == 1
    module.write_text(SCORER.format(1.5) + "# edited\n")
    assert raw() == 1.5
    assert len(list(folder.iterdir())) == 2
