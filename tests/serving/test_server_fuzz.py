"""Malformed requests by the thousand against a real `clp serve`: nothing is answered with 5xx, nothing is kept in memory.

`CLP_FUZZ=1000 python -m pytest -m slow tests/test_server_fuzz.py` sends another number of them.
"""

import json
import os
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
shares = st.dictionaries(st.sampled_from(["a", "b", "", "speed"]), st.floats() | st.integers())
keys = st.sampled_from([*VALID, "alpha", "temperature", "seed", "stop", "stream", "messages", "n", "x", "\ud800"])
bodies = st.fixed_dictionaries({}, optional={"weighting": shares}) | st.dictionaries(keys, values, max_size=4)
methods = st.sampled_from([b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"\xff"])
targets = st.sampled_from(
    [b"/v1/completions", b"/v1/chat/completions", b"/v1/models", b"/openapi.json", b"/", b"*", b"/%ff?"]
)
lengths = st.sampled_from([None, b"0", b"2", b"40", b"-1", b"x", b"1" * 30, b"9" * 5000, b"1000001"])
headers = st.lists(
    st.sampled_from([
        b"Content-Type: application/json", b"Content-Type: \xff", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
        b"Authorization: Bearer \xe9", b"Host: a", b"Connection: close", b"X" * 70000 + b": 1", b"no colon",
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


def survived(served: Served) -> None:
    assert served.process.poll() is None
    assert served.ask("POST", "/v1/completions", VALID)[0] == 200
    counted = requests.get(f"{served.url}/metrics").text.splitlines()
    assert not [line for line in counted if line.startswith("clp_requests_total") and 'status="5' in line]
    assert "Traceback" not in served.output()


def test_the_schema_names_every_refusal(served):
    status, schema = served.ask("GET", "/openapi.json")
    assert status == 200
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = schema["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "404", "408", "411", "413", "429", "500"}
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
    survived(served)
    print(f"{sent} malformed requests: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    assert sent >= NUMBER and after - before < FLAT
