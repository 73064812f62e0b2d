"""Continuous batching of every family: rows that join at different tokens write what they would alone."""

import time

import numpy as np
import pytest
import torch
from tiny_models import DOCUMENTS, FAMILIES, make_policy, write_model

from clp_lightning.errors import UsageError
from clp_lightning.policy.loading import answering_dtype
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving import engine as serving
from clp_lightning.serving.batch import Batch, request

LONG = "creates a queue that holds what has been sent to it until somebody asks for it, at most for four days"
TEXTS = [*DOCUMENTS, LONG]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request, tmp_path_factory) -> SteerablePolicy:
    return make_policy(write_model(request.param, tmp_path_factory.mktemp(request.param) / "model"))


def plan() -> list[tuple[str, np.ndarray | None, float]]:
    """Nine rows: text, weighting (None: the reference policy) and temperature; a random T5's greedy texts are all empty."""
    shares = [None if n % 4 == 3 else np.array([n / 8, 1 - n / 8]) for n in range(9)]
    return [(TEXTS[n % 4], share, float(n % 3 > 0)) for n, share in enumerate(shares)]


def alone(policy: SteerablePolicy) -> list[str]:
    return [
        policy.generate([text], None if share is None else share[None], temperature=temperature, seed=seed)[0]
        for seed, (text, share, temperature) in enumerate(plan())
    ]


def test_rows_that_join_between_tokens_write_what_they_would_alone(policy):
    batch, all_rows = Batch(policy), []
    with torch.no_grad(), policy.experts.frozen():
        for seed, (text, share, temperature) in enumerate(plan()):
            each = request(policy, text, share, lambda _: None, temperature=temperature, seed=seed)
            all_rows.append(each)
            batch.admit([each])
            if seed % 2:  # two come, then a token is written
                batch.step()
        while batch.requests:
            batch.step()
    assert [each.text for each in all_rows] == alone(policy)
    assert all(each.prompt_tokens == len(each.prompt) > 1 for each in all_rows)
    assert len({each.text for each in all_rows}) > 4


def test_the_engine_writes_what_each_would_alone(policy):
    rows = []
    with serving.Engine(policy, rows=3) as engine:
        for seed, (text, share, temperature) in enumerate(plan()):
            each = request(
                policy, text, share, lambda _: None, temperature=temperature, seed=seed, streamed=bool(seed % 2)
            )
            rows.append(each)
            engine.submit([each])
    assert [each.text for each in rows] == alone(policy)
    assert engine.running == engine.queued == 0


@pytest.mark.parametrize(
    ("rows", "expected"), [(4, "admit 3, step, step, admit 1"), (8, "admit 3, step, admit 1"), (1, "admit 1, step")]
)
def test_with_half_of_the_seats_taken_prompts_are_read_after_every_second_token(policy, monkeypatch, rows, expected):
    events = []
    for name in ("admit", "step"):
        done = getattr(Batch, name)
        monkeypatch.setattr(
            Batch,
            name,
            lambda batch, *given, name=name, done=done: (
                events.append(" ".join([name, *(str(len(each)) for each in given)])),
                done(batch, *given),
            ),
        )
    engine = serving.Engine(policy, rows=rows)
    late = request(policy, "a", None, lambda _: None, temperature=1.0)

    def deliver(each):
        if len(each.tokens) == 1 and each is first[0]:
            engine.submit([late])

    first = [request(policy, text, None, deliver, temperature=1.0, seed=seed) for seed, text in enumerate(TEXTS[:3])]
    engine.submit(first)
    with engine:
        while late.finish is None:
            time.sleep(0.01)
    assert ", ".join(events).startswith(expected)


def test_a_batch_that_fails_fails_its_own_requests_only(policy, monkeypatch):
    ended = []
    with serving.Engine(policy) as engine:
        bad = request(policy, "a", None, ended.append, streamed=False)
        bad.coefficients = torch.zeros(1, 7)  # no policy has so many experts
        engine.submit([bad])
        while not bad.finish:
            pass
        good = request(policy, "a", None, ended.append, streamed=False)
        engine.submit([good])
    assert (bad.finish, good.finish in ("stop", "length")) == ("error", True)
    assert "RuntimeError" in bad.text and ended == [bad, good]


def test_a_processor_answers_in_float32_unless_told_otherwise():
    assert answering_dtype() in ((torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,))
    assert answering_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(UsageError, match="expected one of auto, float32, bfloat16, float16, but found 'int8'"):
        answering_dtype("int8")
