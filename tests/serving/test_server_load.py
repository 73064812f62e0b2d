"""A thousand requests of 64 clients with 64 weightings against a real `clp serve`: no error, and every answer is its own."""

from pathlib import Path

import pytest
from serving_models import TEXTS, write_policy

from bench.serving.load import Load, measure, report, unequal
from bench.serving.process import Served
from clp_lightning.policy.loading import answering_dtype
from clp_lightning.policy.steerable import SteerablePolicy


def run(folder: Path, *, clients: int, requests: int, turns: int, singles: int) -> dict:
    model = write_policy(folder)
    policy = SteerablePolicy.from_pretrained(model, dtype=answering_dtype())
    load = Load(TEXTS, policy.objectives, clients)
    with Served(model) as served:
        figures, outcomes = measure(served, load, requests, turns, singles)
    return report(figures, outcomes, unequal(policy, load, outcomes))


@pytest.mark.slow
def test_a_thousand_requests_of_64_clients(tmp_path):
    found = run(tmp_path, clients=64, requests=1000, turns=1, singles=64)
    assert (found["errors"], found["unequal"]) == (0, 0), (found["first_errors"], found["first_unequal"])
    assert found["requests"] == 2064 and found["compared"] > 1000


def test_a_load_is_measured_and_compared(tmp_path):
    found = run(tmp_path, clients=4, requests=16, turns=2, singles=2)
    assert (found["errors"], found["unequal"]) == (0, 0), (found["first_errors"], found["first_unequal"])
    assert found["requests"] == 4 + 2 * (8 + 8 + 2)
    assert set(found["ratios"]) == {"fixed", "single"}
    assert all(found["sides"]["mixed"][name] > 0 for name in ("requests_per_s", "tokens_per_s", "latency_95_s"))
