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


def plan() -> list[tuple[str, np.ndarray | None, dict]]:
    """Nine rows: text, weighting (None: the reference policy) and sampling; a random T5's greedy texts are all empty."""
    shares = [None if n % 4 == 3 else np.array([n / 8, 1 - n / 8]) for n in range(9)]
    return [
        (TEXTS[n % 4], share, {"temperature": float(n % 3 > 0), "top_p": (1.0, 0.8)[n % 2], "seed": n})
        for n, share in enumerate(shares)
    ]


def alone(policy: SteerablePolicy) -> list[str]:
    return [
        policy.generate([text], None if share is None else share[None], **sampling)[0]
        for text, share, sampling in plan()
    ]


def test_rows_that_join_between_tokens_write_what_they_would_alone(policy):
    batch, all_rows = Batch(policy), []
    with torch.no_grad(), policy.experts.frozen():
        for row, (text, share, sampling) in enumerate(plan()):
            each = request(policy, text, share, lambda _: None, **sampling)
            all_rows.append(each)
            batch.admit([each])
            if row % 2:  # two come, then a token is written
                batch.step()
        while batch.requests:
            batch.step()
    assert [each.text for each in all_rows] == alone(policy)
    assert all(each.prompt_tokens == len(each.prompt) > 1 for each in all_rows)
    assert len({each.text for each in all_rows}) > 4


def test_the_engine_writes_what_each_would_alone(policy):
    rows = []
    with serving.Engine(policy, rows=3) as engine:
        for row, (text, share, sampling) in enumerate(plan()):
            each = request(policy, text, share, lambda _: None, **sampling, streamed=bool(row % 2))
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


def test_requests_that_come_together_fail_alone(policy):
    ended = []
    engine = serving.Engine(policy)
    rows = [request(policy, text, None, ended.append, temperature=1.0, streamed=False) for text in "abc"]
    rows[1].coefficients = torch.zeros(1, 7)  # no policy has so many experts
    engine.submit(rows)
    with engine:
        pass
    assert rows[1].finish == "error" and "RuntimeError" in rows[1].text
    assert [rows[0].text, rows[2].text] == [policy.generate([text], None)[0] for text in "ac"]
    assert len(ended) == 3


def test_an_answer_that_nobody_can_take_disturbs_no_other(policy):
    def gone(_) -> None:
        raise ConnectionError("nobody there")

    bad = request(policy, "a", None, gone, temperature=1.0)
    good = request(policy, "b", None, lambda _: None, temperature=1.0)
    engine = serving.Engine(policy)
    engine.submit([bad, good])
    with engine:
        pass
    assert bad.cancelled and bad.finish in ("cancelled", "stop")
    assert [good.text] == policy.generate(["b"], None)


def test_an_engine_that_dies_fails_all_who_wait_and_all_who_come(policy):
    def die(_) -> None:
        raise SystemExit("no more")

    told = {name: [] for name in ("running", "waiting")}
    engine = serving.Engine(policy, rows=2)
    assert not engine.alive  # not begun
    rows = [
        request(policy, text, None, deliver, temperature=1.0, seed=1)
        for text, deliver in (("a", die), ("b", told["running"].append), ("c", told["waiting"].append))
    ]
    engine.submit(rows)
    with engine:
        until = time.monotonic() + 20
        while engine.alive and time.monotonic() < until:
            time.sleep(0.01)
        assert not engine.alive
        with pytest.raises(serving.DeadError, match=r"nothing is answered any more \(SystemExit: no more\); start the"):
            engine.submit([rows[0]])
    assert rows[0].finish and [each.finish for each in rows[1:]] == ["error", "error"]
    assert told == {"running": [rows[1]], "waiting": [rows[2]]}
    assert rows[2].text == "SystemExit: no more" and engine.queued == 0


def test_an_engine_is_alive_until_it_is_left(policy):
    with serving.Engine(policy, waiting=2) as engine:
        assert engine.alive
        with pytest.raises(serving.BusyError, match="2 requests wait already; try again later"):
            engine.submit([request(policy, "a", None, lambda _: None) for _ in range(3)])
    assert not engine.alive
    with pytest.raises(serving.BusyError, match="shutting down"):
        engine.submit([request(policy, "a", None, lambda _: None)])


def test_a_processor_answers_in_float32_unless_told_otherwise():
    assert answering_dtype() in ((torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,))
    assert answering_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(UsageError, match="expected one of auto, float32, bfloat16, float16, but found 'int8'"):
        answering_dtype("int8")
