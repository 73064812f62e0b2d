"""A user's own rewards: functions of the project, and servers on loopback that answer well, badly, late or not at all."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import DEFAULT

from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.rewards.reward_set import RewardSet

Answer = Callable[[str, Any], tuple[int, Any]]  # path and JSON of a request -> status and JSON or bytes


class Server(ThreadingHTTPServer):
    """Answers with `answer`; keeps what it was asked, and the header Authorization of it."""

    daemon_threads = True
    answer: Answer
    asked: list[Any]
    tokens: list[str | None]
    url: str


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(content)
        self.server.tokens.append(self.headers["Authorization"])
        status, body = self.server.answer(self.path, content)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has given up
            pass

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(answer: Answer, handler: type[Handler] = Handler) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), handler)
    server.answer, server.asked, server.tokens = answer, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def rewards(section, root, references=None):
    config = Config.model_validate({**DEFAULT, "rewards": {"mine": section}})
    return RewardSet.from_config(config, root, None, references)


def http(url, **keys):
    return {"kind": "http", "url": url, "references": False, "retries": 0, "timeout": 5.0, **keys}


def lengths(path, content):
    return 200, {
        "scores": [len(d) + len(r) / 8 for d, r in zip(content["documents"], content["responses"], strict=True)]
    }


MODULE = """
def good(documents, responses):
    assert isinstance(documents, list) and isinstance(responses, list)
    return [len(d) + len(r) / 8 for d, r in zip(documents, responses)]

def overlap(documents, responses, references):
    return [float(a == b) for a, b in zip(responses, references)]

def raises(documents, responses):
    raise ZeroDivisionError("of\\nthe user")

def short(documents, responses):
    return [1.0] * (len(responses) - 1)

def nan(documents, responses):
    return [float("nan")] * len(responses)

def words(documents, responses):
    return ["many"] * len(responses)

def one_argument(documents):
    return [1.0]

number = 3
"""


def python(tmp_path, function, **keys):
    (tmp_path / "user_scoring.py").write_text(MODULE)
    return {"kind": "python", "function": f"user_scoring:{function}", **keys}


def test_function_of_the_project(tmp_path):
    documents, responses = ["a", "bb", "ccc"], ["x", "", "yy"]
    for keys in ({}, {"batch_size": 2}, {"cache": "none"}, {"cache": "disk"}):
        made = rewards(python(tmp_path, "good", **keys), tmp_path)
        assert made.raw(documents, responses)[:, 0].tolist() == [1.125, 2.0, 3.25]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=1, max_size=9), st.integers(1, 10))
def test_batch_size_and_cache_change_no_value(tmp_path_factory, rows, size):
    folder = tmp_path_factory.getbasetemp()
    texts = [list(column) for column in zip(*rows, strict=True)]
    plain = rewards(python(folder, "good", cache="none"), folder).raw(*texts)
    assert rewards(python(folder, "good", batch_size=size), folder).raw(*texts).tolist() == plain.tolist()


def test_function_with_references(tmp_path):
    made = rewards(python(tmp_path, "overlap", batch_size=1), tmp_path, {"d": "r", "e": "s"})
    assert made.raw(["d", "e"], ["r", "r"])[:, 0].tolist() == [1, 0]
    with pytest.raises(ClpError, match="reward mine reads the reference summary, and 'f' has none"):
        made.raw(["f"], ["r"])


def test_function_of_an_installed_module(tmp_path):
    with pytest.raises(ClpError, match="reward mine failed: TypeError"):
        rewards({"kind": "python", "function": "json:dumps"}, tmp_path).raw(["d"], ["r"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "reward mine failed: ZeroDivisionError: of the user; mend the reward or remove it"),
        ("short", r"reward mine: returned shape \(1,\) for 2 responses; return one number for each"),
        ("nan", r"reward mine returned nan for response 1 \('r'\); return finite numbers"),
        ("words", "reward mine failed: ValueError: could not convert string to float: 'many'; mend"),
        ("one_argument", "reward mine failed: TypeError: one_argument.. takes 1 positional argument but 2 were given"),
        ("missing", r"reward mine: .*user_scoring.py has no function missing; correct function"),
        ("number", r"reward mine: .*user_scoring.py has no function number; correct function"),
    ],
)
def test_bad_functions_are_one_line(tmp_path, function, message):
    with pytest.raises(ClpError, match=message) as raised:
        rewards(python(tmp_path, function), tmp_path).raw(["d", "d"], ["r", "s"])
    assert "\n" not in str(raised.value)


def test_bad_modules_are_one_line(tmp_path):
    (tmp_path / "user_broken.py").write_text("import not_installed_at_all\n")
    (tmp_path / "user_syntax.py").write_text("def (:\n")
    for name, message in (
        ("user_nowhere", "reward mine: no module user_nowhere in .* nor among the installed ones; correct function"),
        ("user_broken", "reward mine failed: ModuleNotFoundError: No module named 'not_installed_at_all'"),
        ("user_syntax", "reward mine failed: SyntaxError: invalid syntax"),
    ):
        with pytest.raises(ClpError, match=message) as raised:
            rewards({"kind": "python", "function": f"{name}:score"}, tmp_path)
        assert "\n" not in str(raised.value)


def test_server_is_asked_in_batches_and_once_for_each_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    documents, responses = ["a", "bb", "a", "ccc"], ["x", "", "x", "yy"]
    with serving(lengths) as server:
        made = rewards(http(server.url, batch_size=2, token_env="MY_TOKEN"), tmp_path)
        for _ in range(2):
            assert made.raw(documents, responses)[:, 0].tolist() == [1.125, 2.0, 1.125, 3.25]
        assert server.asked == [
            {"documents": ["a", "bb"], "responses": ["x", ""]}, {"documents": ["ccc"], "responses": ["yy"]}
        ]  # fmt: skip
        assert server.tokens == ["Bearer secret"] * 2
        made = rewards(http(server.url, references=True), tmp_path, {"a": "ref"})
        assert made.raw(["a"], ["x"]).item() == 1.125
        assert server.asked[-1] == {"documents": ["a"], "responses": ["x"], "references": ["ref"]}
        assert server.tokens[-1] is None


def test_cache_on_disk_outlives_the_server(tmp_path):
    with serving(lengths) as server:
        section = http(server.url, cache="disk")
        first = rewards(section, tmp_path).raw(["d"], ["r"])
    assert rewards(section, tmp_path).raw(["d"], ["r"]) == first
    with pytest.raises(ClpError, match="cannot be reached"):
        rewards(section, tmp_path).raw(["d"], ["new"])


def test_a_server_that_recovers_is_asked_again(tmp_path):
    answers = iter([(503, b"busy"), (200, b"{}"), None])

    def recovers(path, content):
        return next(answers) or lengths(path, content)

    with serving(recovers) as server:
        assert rewards(http(server.url, retries=2), tmp_path).raw(["a"], ["x"]).item() == 1.125
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"traceback\nline", r"answered 500 \(traceback line\)"),
        (429, b"", r"answered 429 \(\)"),
        (200, b"<html>", r"answered no JSON \(<html>\)"),
        (200, b"\xff\xfe", r"answered no JSON"),
        (200, [1.0], "answered no list of scores for 2 responses"),
        (200, {"scores": [1.0]}, "answered 1 scores for 2 responses"),
        (200, {"scores": [1.0, float("nan")]}, "answered nan for response 2, which is no finite number"),
        (200, {"scores": [1.0, True]}, "answered True for response 2, which is no finite number"),
        (200, {"scores": [None, 1.0]}, "answered None for response 1, which is no finite number"),
        (200, b'{"scores": [1, 1' + b"0" * 400 + b"]}", "answered inf for response 2, which is no finite number"),
        (200, b"[" * 100000, "answered no JSON"),
    ],
)
def test_bad_answers_are_one_line_after_the_retries(tmp_path, status, body, message):
    with serving(lambda path, content: (status, body)) as server:
        made = rewards(http(f"{server.url}/score?key=hidden", retries=1), tmp_path)
        with pytest.raises(
            ClpError, match=rf"^reward mine: {server.url}/score ({message}).* \(2 tries\); start"
        ) as raised:
            made.raw(["d", "d"], ["r", "s"])
        assert len(server.asked) == 2
    assert "\n" not in str(raised.value) and "hidden" not in str(raised.value)


@pytest.mark.parametrize("status", [401, 404, 422, 302, 204])
def test_a_refusal_is_not_asked_again(tmp_path, status):
    with serving(lambda path, content: (status, b"no")) as server:
        with pytest.raises(ClpError, match=rf"{server.url} answered {status} \(.*\); correct url"):
            rewards(http(server.url, retries=3), tmp_path).raw(["d"], ["r"])
        assert len(server.asked) == 1


def test_one_bad_batch_gives_no_partial_result(tmp_path):
    def second_fails(path, content):
        return (500, b"") if content["responses"] == ["s"] else lengths(path, content)

    with serving(second_fails) as server:
        made = rewards(http(server.url, batch_size=1, cache="disk"), tmp_path)
        with pytest.raises(ClpError, match="answered 500"):
            made.raw(["d", "d"], ["r", "s"])
    assert not (tmp_path / "build").exists()


class Drips(Handler):
    """Sends a byte every tenth of a second: no single wait is long."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(50):
                self.wfile.write(b" ")
                time.sleep(0.1)
        except OSError:
            pass


def test_a_slow_server_is_one_line_in_time(tmp_path):
    done, started = threading.Event(), time.monotonic()
    with serving(lambda path, content: (200, {"late": done.wait(10)})) as server:
        with pytest.raises(ClpError, match=r"gave no answer within 0.3 s \(1 tries\); start or mend the server"):
            rewards(http(server.url, timeout=0.3), tmp_path).raw(["d"], ["r"])
        done.set()
    with serving(lengths, Drips) as server, pytest.raises(ClpError, match=r"gave no answer within 0\.3 s"):
        rewards(http(server.url, timeout=0.3), tmp_path).raw(["d"], ["r"])
    assert time.monotonic() - started < 8


def test_no_server_and_no_token_are_one_line(tmp_path, monkeypatch):
    with serving(lengths) as server:
        url = server.url
    with pytest.raises(ClpError, match=rf"^reward mine: {url} cannot be reached \(.*refused.*\) \(1 tries\); start"):
        rewards(http(url), tmp_path).raw(["d"], ["r"])
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(ClpError, match="reward mine: the environment variable NO_SUCH_TOKEN is not set; put"):
        rewards(http(url, token_env="NO_SUCH_TOKEN"), tmp_path).raw(["d"], ["r"])
