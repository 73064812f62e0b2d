"""The command itself: its help and version, and what it is given where it cannot take it."""

import json
import socket
import subprocess
import sys

import pytest
from locations import REPOSITORY
from typer.testing import CliRunner

from clp_lightning.cli import serve
from clp_lightning.cli.app import app
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.policy.steerable import SteerablePolicy
from flows import dvc_state


def test_version():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.output.startswith("clp-lightning 0.") and len(done.output.splitlines()) == 1


def test_help_says_what_it_is_and_where_to_begin():
    shown = CliRunner().invoke(app, ["--help"]).output
    about = " ".join(shown[: shown.index("Options")].split())
    assert "Finetune one language model for every trade-off between its rewards" in about
    assert about.index("clp init FOLDER") < about.index("clp data") < about.index("dvc repro")


@pytest.fixture
def policy(tmp_path, monkeypatch):
    """A project whose policy is a card, for what is refused before it is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clp-full").mkdir(parents=True)
    (tmp_path / "models" / "clp-full" / "clp.json").write_text(json.dumps({"objectives": ["a", "b"]}))
    return tmp_path


def test_standard_input_that_is_not_utf8(policy):
    done = CliRunner().invoke(app, ["generate", "--weighting", "a=1,b=0"], input=b"fine\nna\xefve\n")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "standard input:2: not UTF-8 (byte 0xef); save it as UTF-8"


def test_an_argument_that_is_not_utf8(policy):
    command = [sys.executable, "-m", "clp_lightning.cli", "generate", "--weighting", "a=1,b=0", "fine", b"na\xefve"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "clp: error: prompt 2 is not UTF-8; write it so, or give it on standard input\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Hi", "prompt 2: it is no JSON"),
        ('{"role": "user", "content": "Hi"}', "prompt 2: expected a list of messages"),
        ('[{"role": "user"}]', "prompt 2: the content of message 1 is empty"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "prompt 2: the last message is"),
    ],
)
def test_messages_that_are_none(policy, text, reason):
    fine = '[{"role": "user", "content": "fine"}]'
    done = CliRunner().invoke(app, ["generate", "--messages", "--weighting", "a=1,b=0", fine, text])
    assert isinstance(done.exception, UsageError) and reason in str(done.exception)
    assert "\n" not in str(done.exception)


def test_messages_are_what_the_policy_gets_from_python_too(steered, monkeypatch):
    monkeypatch.chdir(steered)
    messages = [{"role": "user", "content": "queue: the name\n\nAssistant: of the queue"}]
    command = ["generate", "--messages", "--weighting", "informativeness=1,brevity=0", "--json", json.dumps(messages)]
    done = CliRunner().invoke(app, command)
    (answer,) = SteerablePolicy.from_pretrained("models/clp-full").generate(
        [messages], {"informativeness": 1.0, "brevity": 0.0}, temperature=0.0
    )
    shown = json.loads(done.stdout)
    assert shown["response"] == answer and shown["prompt"].startswith("Human: queue")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_taken_port_is_told_before_the_model_is_loaded(policy, monkeypatch, host):
    monkeypatch.setattr(SteerablePolicy, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", "--host", host, "--port", str(port)])
    assert isinstance(done.exception, ClpError)
    assert str(done.exception) == f"cannot listen on {host}:{port} (Address already in use); choose another --port"


def test_an_address_that_is_not_here(policy, monkeypatch):
    monkeypatch.setenv("CLP_SERVE_TOKEN", "secret")
    for host, message in (
        ("192.0.2.1", "cannot listen on 192.0.2.1:"),
        ("no.such.host.invalid", "--host no.such.host"),
    ):
        with pytest.raises(ClpError, match=message):
            serve.listening(host, 8000)


def test_a_port_is_held_and_nobody_is_answered_before_the_model_is_there():
    (held,) = serve.listening("127.0.0.1", 0)
    with held:
        address = held.getsockname()
        with socket.socket() as asking:
            assert asking.connect_ex(address) != 0
        held.listen()
        with socket.socket() as asking:
            assert asking.connect_ex(address) == 0


def test_help_of_the_tools_beside_starts_no_work():
    done = subprocess.run(
        [sys.executable, "-m", "bench.families", "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "Usage" in done.stdout and "| family |" not in done.stdout
    assert dvc_state.main(["--help"]) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--allow-origin", value)
        for value in ("my.site", "null", "https://my.site/page", "https://a@b", "https://a:x", "")
    ]
    + [("--allow-host", value) for value in ("https://my.site", "my.site:80", "*", "a b", "")],
)
def test_what_no_browser_sends_is_refused_before_a_model_is_loaded(option, value):
    ended = CliRunner().invoke(app, ["serve", option, value])
    assert isinstance(ended.exception, UsageError)
    assert f"{option} {value}: expected" in str(ended.exception)


def test_names_are_checked_on_loopback_and_where_they_are_given():
    own = {"localhost", "127.0.0.1", "::1"}
    assert serve._hosts("127.0.0.5", []) == own | {"127.0.0.5"}
    assert serve._hosts("::1", ["My.Site"]) == own | {"my.site"}
    assert serve._hosts("0.0.0.0", []) == set()
    assert serve._hosts("0.0.0.0", ["[fe80::1]"]) == own | {"0.0.0.0", "fe80::1"}
    assert serve._origin("https://My.Site:8080/") == "https://my.site:8080" and serve._origin("*") == "*"
