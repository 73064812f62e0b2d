"""Malformed requests by the thousand against a real `clp serve`: nothing is answered with 5xx, nothing is kept in memory.

`CLP_FUZZ=1000 python -m pytest -m slow -s tests/serving/test_server_fuzz.py` sends another number of them.
"""

import json
import os
import re
import socket

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_models import write_policy

from bench.serving.process import Served

NUMBER = int(os.environ.get("CLP_FUZZ", "10000"))
FLAT = 24_000_000  # bytes: what Python and its allocator may take after the first tenth
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
VALID = {
    "model": "clp-full", "prompt": "queue: the name", "weighting": {"a": 0.25, "b": 0.75}, "max_tokens": 1,
}  # fmt: skip
CHAT = {
    **{k: v for k, v in VALID.items() if k != "prompt"},
    "messages": [{"role": "user", "content": "queue: the name"}],
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["reference", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
words = st.text(max_size=8) | st.sampled_from(
    ["", " ", "\ud800", "a\udfff", "System: a", "a\n\nHuman: b\n\nAssistant:"]
)
few = st.none() | st.integers(-1, 3) | st.sampled_from([1.0, 2.5, "1", True, 129, 10**30])
tokens = st.lists(st.integers(-1, 400) | st.sampled_from([0.0, 1.5, True, "a", 10**30]), max_size=5)
parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", None])}, optional={"text": words | values})
    | values,
    max_size=3,
)
roles = st.sampled_from(["user", "system", "developer", "assistant", "tool", None])
messages = st.lists(
    st.fixed_dictionaries({"role": roles}, optional={"content": words | parts | st.none(), "name": words | st.none()})
    | values,
    max_size=4,
)
known = {
    "prompt": words | tokens | st.lists(tokens | words, max_size=3),
    "messages": messages,
    "n": few, "best_of": few, "seed": few, "logprobs": few | st.booleans(), "top_logprobs": few,
    "max_tokens": few | st.just(1e9), "max_completion_tokens": few,
    "top_p": st.none() | st.floats(0, 1) | few, "temperature": st.none() | st.floats(0, 2) | few,
    "presence_penalty": st.sampled_from([None, 0, 0.0, 1]), "frequency_penalty": st.sampled_from([None, 0, -1]),
    "stop": st.none() | words | st.lists(words, max_size=5),
    "stream": st.none() | st.booleans(),
    "stream_options": st.none() | st.fixed_dictionaries({}, optional={"include_usage": st.none() | st.booleans()}),
    "logit_bias": st.sampled_from([None, {}, {"5": 1}]), "echo": st.sampled_from([None, False, True]),
    "user": st.none() | words, "metadata": st.none() | st.dictionaries(words, words, max_size=2),
    "tools": st.sampled_from([None, [], [{}]]), "tool_choice": st.sampled_from([None, "none", "required"]),
    "response_format": st.sampled_from([None, {"type": "text"}, {"type": "json_object"}]),
}  # fmt: skip
shares = st.dictionaries(st.sampled_from(["a", "b", "", "speed"]), st.floats() | st.integers())
keys = st.sampled_from([*VALID, "alpha", "temperature", "seed", "stop", "stream", "messages", "n", "x", "\ud800"])
bodies = (
    st.fixed_dictionaries({}, optional={"weighting": shares})
    | st.dictionaries(keys, values, max_size=4)
    | st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: known[name] for name in names})
    )
)
methods = st.sampled_from([b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"\xff"])
targets = st.sampled_from(
    [b"/v1/completions", b"/v1/chat/completions", b"/v1/models", b"/openapi.json", b"/", b"*", b"/%ff?"]
)
lengths = st.sampled_from([None, b"0", b"2", b"40", b"-1", b"x", b"1" * 30, b"9" * 5000, b"1000001"])
headers = st.lists(
    st.sampled_from([
        b"Content-Type: application/json", b"Content-Type: \xff", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
        b"Authorization: Bearer \xe9", b"Host: a", b"Host: localhost", b"Host: [::1", b"Origin: http://a",
        b"Connection: close", b"X" * 70000 + b": 1", b"no colon",
        b"Upgrade: websocket",
    ]), max_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Served(write_policy(tmp_path_factory.mktemp("served"))) as found:
        yield found


def examples(number: int):
    return settings(
        max_examples=max(1, number), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def by_schema(served: Served, session: requests.Session, number: int) -> int:
    """Send what schemathesis makes of /openapi.json, three quarters of it against the schema; returns how many."""
    schema, sent = schemathesis.openapi.from_url(f"{served.url}/openapi.json"), 0
    for path in ("/v1/completions", "/v1/chat/completions"):
        for mode, part in ((GenerationMode.NEGATIVE, 3), (GenerationMode.POSITIVE, 1)):

            @examples(number * part // 8)
            @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
            def send(case):
                nonlocal sent
                sent += 1
                response = case.call(session=session)
                case.validate_response(response, checks=CHECKS)

            send()
    return sent


def by_body(served: Served, session: requests.Session, number: int) -> int:
    """Send bodies that are nearly right; returns how many."""
    sent = 0

    @examples(number)
    @given(changes=bodies, chat=st.booleans(), cut=st.integers(0, 400))
    def send(changes, chat, cut):
        nonlocal sent
        sent += 1
        content = json.dumps((CHAT if chat else VALID) | changes).encode("utf-8", "surrogatepass")
        content = content[:cut] if cut < 100 else content
        path = "/v1/chat/completions" if chat else "/v1/completions"
        response = session.post(served.url + path, content, headers={"Content-Type": "application/json"})
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json()["error"]["message"]
        elif response.headers["Content-Type"].startswith("text/event-stream"):
            assert '"error"' not in response.text and response.text.endswith("data: [DONE]\n\n")

    send()
    return sent


def by_bytes(served: Served, number: int) -> int:
    """Send what is hardly HTTP, and hang up; returns how many."""
    sent = 0

    @examples(number)
    @given(
        method=methods, target=targets, length=lengths, others=headers, content=st.binary(max_size=50) | st.just(b"{}")
    )
    def send(method, target, length, others, content):
        nonlocal sent
        sent += 1
        lines = [method + b" " + target + b" HTTP/1.1", *others]
        lines += [] if length is None else [b"Content-Length: " + length]
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
            try:
                connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + content)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(200)
            except (ConnectionError, OSError):
                answer = b""  # it hung up first
        assert not answer.startswith(b"HTTP/1.1 5"), answer

    send()
    return sent


def fuzz(served: Served, number: int) -> int:
    session, sent = requests.Session(), 0
    while sent < number:  # hypothesis may find no more examples that are new
        rest = number - sent
        sent += by_schema(served, session, rest * 2 // 5)
        sent += by_body(served, session, max(1, rest * 2 // 5))
        sent += by_bytes(served, max(1, rest // 5))
    return sent


def survived(served: Served) -> dict[str, int]:
    """Check that it answers still; returns how many of its answers had each status."""
    assert served.process.poll() is None
    assert served.ask("POST", "/v1/completions", VALID)[0] == 200
    counted: dict[str, int] = {}
    for line in requests.get(f"{served.url}/metrics").text.splitlines():
        if found := re.match(r'clp_requests_total\{.*status="(\d+)"\} (.*)', line):
            counted[found[1]] = counted.get(found[1], 0) + int(float(found[2]))
    assert not [status for status in counted if status.startswith("5")], counted
    assert "Traceback" not in served.output()
    return counted


def test_the_schema_names_every_refusal(served):
    status, schema = served.ask("GET", "/openapi.json")
    assert status == 200
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = schema["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "404", "408", "411", "413", "429", "500", "503"}
        for refusal in responses.keys() - {"200"}:
            shape = responses[refusal]["content"]["application/json"]["schema"]
            assert shape == {"$ref": "#/components/schemas/Failure"}


def test_a_hundred_malformed_requests(served):
    assert fuzz(served, 100) >= 100
    survived(served)


@pytest.mark.slow
def test_malformed_requests_break_nothing_and_leave_nothing(served):
    sent = fuzz(served, NUMBER // 10)
    before = served.memory()
    sent += fuzz(served, NUMBER - sent)
    after = served.memory()
    counted = survived(served)
    told = ", ".join(f"{number} with {status}" for status, number in sorted(counted.items()))
    print(
        f"{sent} malformed requests: 0 answers of 5xx ({told}); {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    )
    assert sent >= NUMBER and after - before < FLAT
