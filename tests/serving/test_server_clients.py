"""`clp serve` as a process: OpenAI's own client, clients that go away, and its end while answers are being written."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from serving_models import write_policy

from bench.serving.process import Served
from clp_lightning.policy.loading import answering_dtype
from clp_lightning.policy.steerable import SteerablePolicy

TEXT = "queue: The name of the queue that receives messages."
SHARES = {"a": 0.25, "b": 0.75}
STEERED = {"weighting": SHARES}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_policy(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def policy(model) -> SteerablePolicy:
    return SteerablePolicy.from_pretrained(model, dtype=answering_dtype())


@pytest.fixture(scope="module")
def client(model):
    with Served(model, "--allow-origin", "https://my.site", CLP_SERVE_TOKEN="secret") as served:
        yield openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0)


def body(**changes) -> dict:
    return {"model": "clp-full", "prompt": TEXT, "weighting": SHARES, "temperature": 0} | changes


def soon(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_openais_client_gets_completions_and_chats(client, policy):
    expected = policy.generate([TEXT], np.array([[0.25, 0.75]]), temperature=0.0)[0]
    done = client.completions.create(model="clp-full", prompt=TEXT, temperature=0, extra_body=STEERED)
    assert done.choices[0].text == expected and done.usage.completion_tokens > 1
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    said = client.chat.completions.create(model="clp-full", messages=messages, temperature=0, extra_body=STEERED)
    assert said.choices[0].message.content == expected and said.choices[0].finish_reason in ("stop", "length")
    reference = client.completions.create(
        model="clp-full", prompt=[TEXT, TEXT], temperature=1, seed=3, extra_body={"weighting": "reference"}
    )
    assert [each.text for each in reference.choices] == [policy.generate([TEXT], None, seed=3)[0]] * 2


def test_openais_client_reads_streams(client, policy):
    expected = policy.generate([TEXT], np.array([[0.25, 0.75]]), temperature=0.0)[0]
    parts = client.completions.create(model="clp-full", prompt=TEXT, temperature=0, stream=True, extra_body=STEERED)
    assert "".join(part.choices[0].text for part in parts) == expected
    chat = client.chat.completions.create(
        model="clp-full", messages=[{"role": "user", "content": TEXT}], temperature=0, stream=True, extra_body=STEERED
    )
    assert "".join(part.choices[0].delta.content for part in chat) == expected


def test_openais_client_lists_the_model_and_raises_its_errors(client):
    (card,) = client.models.list().data
    assert card.id == "clp-full" and card.objectives == ["a", "b"]
    with pytest.raises(openai.BadRequestError, match=r"entries sum to 0\.7, not 1"):
        client.completions.create(model="clp-full", prompt=TEXT, extra_body={"weighting": {"b": 0.7}})
    with pytest.raises(openai.BadRequestError, match="weighting: give shares of the objectives"):
        client.completions.create(model="clp-full", prompt=TEXT)
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.completions.create(model="gpt-4", prompt=TEXT, extra_body=STEERED)
    with pytest.raises(openai.AuthenticationError, match="give the server's token"):
        client.with_options(api_key="wrong").models.list()


def test_openais_client_gets_several_answers_and_sends_tokens_and_parts(client, policy):
    alone = [policy.generate([TEXT], np.array([[0.25, 0.75]]), seed=seed)[0] for seed in (5, 6)]
    asked = {"model": "clp-full", "n": 2, "seed": 5, "top_p": 1.0, "extra_body": STEERED}
    done = client.completions.create(prompt=policy.tokenizer(TEXT)["input_ids"], best_of=2, **asked)
    assert [choice.text for choice in done.choices] == alone
    assert done.usage.prompt_tokens_cut == policy.template.left_out(TEXT)
    messages = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]
    said = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=1, **asked)
    assert all(each.logprob <= each.top_logprobs[0].logprob for each in said.choices[0].logprobs.content)
    assert [choice.message.content for choice in said.choices] == alone
    parts, streamed = ["", ""], client.chat.completions.create(messages=messages, stream=True, **asked)
    for part in streamed:
        parts[part.choices[0].index] += part.choices[0].delta.content
    assert parts == alone
    long = client.completions.with_raw_response.create(model="clp-full", prompt=TEXT * 9, extra_body=STEERED)
    assert int(long.headers["X-CLP-Prompt-Tokens-Cut"]) == policy.template.left_out(TEXT * 9) > 0


def test_pages_of_an_allowed_origin_are_answered_and_requests_to_other_names_are_not(client):
    page = client.models.with_raw_response.list(extra_headers={"Origin": "https://my.site"})
    assert page.headers["Access-Control-Allow-Origin"] == "https://my.site"
    with pytest.raises(openai.BadRequestError, match="not asked by this name"):
        client.models.list(extra_headers={"Host": "evil.site"})


@pytest.mark.slow
def test_sigterm_lets_answers_be_finished_and_ends_with_0(model, policy):
    shares, prompts = np.linspace(0, 1, 7), [f"{TEXT} {n}" for n in range(32)]
    expected = [policy.generate(prompts, np.tile([s, 1 - s], (32, 1)), temperature=0.0) for s in shares]
    with Served(model, "--rows", "1") as served, ThreadPoolExecutor(8) as pool:
        weightings = [{"a": s, "b": 1 - s} for s in shares]
        asked = [
            pool.submit(served.ask, "POST", "/v1/completions", body(prompt=prompts, weighting=weighting))
            for weighting in weightings
        ]
        soon(lambda: served.ask("GET", "/health")[1]["waiting"] > 180)
        stream = served.connect()
        stream.request("POST", "/v1/completions", json.dumps(body(stream=True)), {"Content-Type": "application/json"})
        streamed = stream.getresponse()
        exit_code = pool.submit(served.stop, signal.SIGTERM)
        lines = [line[6:] for line in streamed.read().decode().splitlines() if line]
        for answer, texts in zip(asked, expected, strict=True):
            status, said = answer.result()
            assert status == 200 and [choice["text"] for choice in said["choices"]] == texts
        assert lines[-1] == "[DONE]" and json.loads(lines[-2])["choices"][0]["finish_reason"] in ("stop", "length")
        assert exit_code.result() == 0
        with pytest.raises(OSError):
            served.ask("GET", "/health")


def metrics(served: Served) -> str:
    connection = served.connect()
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


@pytest.mark.slow
def test_answers_of_clients_that_go_away_are_given_up(model):
    with Served(model, "--rows", "1", "--waiting", "2000") as served:
        for stream in (True, False):
            clients = [served.connect() for _ in range(40)]
            for connection in clients:  # 1,280 answers, one after the other
                content = json.dumps(body(prompt=[TEXT] * 32, stream=stream))
                connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
            soon(lambda: served.ask("GET", "/health")[1]["waiting"] > 1100)
            if stream:
                assert clients[0].getresponse().readline().startswith(b"data: ")
            for connection in clients:
                connection.close()
            soon(lambda: served.ask("GET", "/health")[1] == {"status": "ok", "running": 0, "waiting": 0})
        counted = metrics(served)
        assert 'clp_requests_total{path="/v1/completions",status="499"}' in counted
        status, said = served.ask("POST", "/v1/completions", body())
        assert status == 200 and said["choices"][0]["finish_reason"] in ("stop", "length")
        # Counted are the tokens of requests that were answered whole: those before the clients went, never most of them.
        written = [line for line in counted.splitlines() if line.startswith('clp_tokens_total{kind="completion"}')]
        all_of_them = 2 * 40 * 32 * said["usage"]["completion_tokens"]
        assert all(float(line.split()[1]) < all_of_them / 2 for line in written)
