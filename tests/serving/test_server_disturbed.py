"""One client sends what raises, all the time: the answers of the others are those that they get without it.

`python -m pytest -m slow -s tests/serving/test_server_disturbed.py` prints the figures of a thousand requests of 64 clients.
"""

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from fastapi.testclient import TestClient
from serving_models import TEXTS
from tiny_models import make_policy, write_model

from bench.serving.process import Served
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving import engine as serving
from clp_lightning.serving.answers import Service
from clp_lightning.serving.bodies import Limits
from clp_lightning.serving.server import application

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# As Gemma's: no system turn, and turns must alternate.
TEMPLATE = """{% for message in messages %}{% if message['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"""
Post = Callable[[str, dict], "requests.Response"]


def write_chat_policy(folder: Path) -> Path:
    """Write a policy of conversations whose template raises for system turns and for two turns of one role."""
    policy = make_policy(write_model("llama", folder / "base"))
    policy.tokenizer.chat_template = TEMPLATE
    policy.tokenizer.save_pretrained(folder / "base")
    policy.generation = policy.generation.model_copy(update={"chat": True, "template": "{document}"})
    policy.save(folder / "clp-full", base_model="../base")
    return folder / "clp-full"


def good(number: int) -> tuple[str, dict]:
    """Return path and body of a request: each with its own seed and weighting, greedy or sampled, whole or streamed."""
    body = {
        "model": "clp-full", "weighting": {"a": number % 7 / 6, "b": 1 - number % 7 / 6}, "seed": number,
        "temperature": number % 3 / 2, "n": 1 + number % 5 // 4, "stream": number % 4 == 3,
    }  # fmt: skip
    text = f"{TEXTS[number % len(TEXTS)]} {number}"
    if number % 2:
        return COMPLETIONS, body | {"prompt": text}
    return CHAT, body | {"messages": [{"role": "user", "content": text}]}


def raising() -> itertools.cycle:
    """Yield path and body of what raises: in the template, in its tokens, in its weighting."""
    body = {"model": "clp-full", "weighting": {"a": 1.0}, "stream": False}
    system, user = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}
    return itertools.cycle([
        (CHAT, body | {"messages": [system, user]}),
        (CHAT, body | {"messages": [user, user]}),
        (COMPLETIONS, body | {"prompt": [1, 2, 10**6]}),
        (CHAT, body | {"messages": [system, user], "stream": True}),
        (COMPLETIONS, body | {"prompt": "a\ud800"}),
        (COMPLETIONS, body | {"prompt": "a", "weighting": {"speed": 1.0}}),
    ])  # fmt: skip


def said(response: "requests.Response") -> str:
    """Return an answer without what is new in each: its id and when it was made; of a stream what adds up."""
    assert response.status_code == 200, response.text
    if not response.headers["Content-Type"].startswith("text/event-stream"):
        content = response.json()
        return json.dumps([content["choices"], content["usage"]])
    added: dict[int, str] = {}
    for line in response.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                text = choice["text"] if "text" in choice else choice["delta"]["content"]
                added[choice["index"]] = added.get(choice["index"], "") + text
                if choice["finish_reason"]:
                    added[choice["index"]] += f"|{choice['finish_reason']}"
    assert response.text.endswith("data: [DONE]\n\n")
    return json.dumps(sorted(added.items()))


def answers(post: Post, number: int, clients: int) -> list[str]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda each: said(post(*good(each))), range(number)))


def disturbed(post: Post, number: int, clients: int) -> tuple[int, int]:
    """Return how many answers of `clients` - 1 differ beside one that sends what raises, and how many it sent."""
    undisturbed, done, refusals = answers(post, number, clients - 1), threading.Event(), []

    def disturb() -> None:
        for path, body in raising():
            refusals.append(post(path, body))
            if done.is_set():
                return

    other = threading.Thread(target=disturb)
    other.start()
    try:
        found = answers(post, number, clients - 1)
    finally:
        done.set()
        other.join()
    assert {refusal.status_code for refusal in refusals} == {400}
    reasons = "".join(refusal.text for refusal in refusals)
    assert "System role not supported" in reasons and "roles must alternate" in reasons
    assert len(set(undisturbed)) > number / 2  # most are of their own
    return sum(one != other for one, other in zip(undisturbed, found, strict=True)), len(refusals)


def test_what_raises_disturbs_nobody_else(tmp_path):
    policy = SteerablePolicy.from_pretrained(write_chat_policy(tmp_path))
    with serving.Engine(policy, rows=8) as engine:
        app = application(Service(engine, "clp-full", Limits()), None)
        with TestClient(app, headers={"Content-Type": "application/json"}) as client:
            differ, sent = disturbed(lambda path, body: client.post(path, content=json.dumps(body)), 60, 8)
    assert differ == 0 and sent > 6


@pytest.mark.slow
def test_a_thousand_requests_of_63_clients_beside_one_that_raises(tmp_path):
    local = threading.local()
    with Served(write_chat_policy(tmp_path)) as served:

        def post(path: str, body: dict) -> requests.Response:
            if not hasattr(local, "session"):
                local.session = requests.Session()
            return local.session.post(served.url + path, json.dumps(body), headers={"Content-Type": "application/json"})

        differ, sent = disturbed(post, 1000, 64)
        assert "Traceback" not in served.output()
    print(
        f"1000 requests of 63 clients beside {sent} of one that raises, all refused with 400: {differ} answers differ"
    )
    assert differ == 0 and sent > 10
