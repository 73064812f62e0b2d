"""Timing in turns: who runs when, what is counted, and that a side that fails ends the run."""

import json

import pytest

from bench import store_scale
from bench.steering.turns import StepTurns, entry, take_turns


def test_sides_take_turns_and_the_first_round_is_not_counted():
    calls = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 4
    assert {side: len(values) for side, values in seconds.items()} == {"a": 3, "b": 3}


def test_trainers_with_loops_of_their_own_take_turns_step_by_step():
    turns, order = StepTurns(["a", "b", "c"]), []

    def trainer(name):
        def train():
            for _ in range(4):
                turns.begin(name)
                order.append(name)
                turns.end(name)

        return train

    seconds = turns.run({name: trainer(name) for name in turns.names})
    assert "".join(order) == "abc" * 4
    assert all(len(values) == 3 for values in seconds.values())


def test_a_trainer_that_fails_ends_the_run_instead_of_blocking_it():
    turns = StepTurns(["a", "b"])

    def fails():
        raise ValueError("no")

    def waits():
        turns.begin("b")

    with pytest.raises((ValueError, RuntimeError)):
        turns.run({"a": fails, "b": waits})


def test_ratio_is_of_medians():
    report = entry("x", "something", {"ours": [1.0, 2.0, 9.0], "theirs": [4.0, 4.0, 4.0]}, 0.6)
    assert report["ratio"] == 0.5 and report["rounds"] == 3
    assert report["spread_s"] == {"ours": [1.0, 9.0], "theirs": [4.0, 4.0]}


def test_the_store_benchmark_runs_on_few_rows(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    store_scale.main(rows=4000)
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 10 * 391  # 10 prompts at a point of the reference and fifteen of each of 26 methods
    assert {"texts", "documents", "points"} <= report["queries_s"].keys()
