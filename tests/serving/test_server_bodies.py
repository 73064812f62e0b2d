"""What clients send to `clp serve`: several answers, tokens, parts; whose fault it is is told; who may ask at all."""

import json
import re
import threading

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from serving_models import TEXTS, write_policy

from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving import batch
from clp_lightning.serving import engine as serving
from clp_lightning.serving.answers import Service
from clp_lightning.serving.batch import Batch
from clp_lightning.serving.bodies import Limits
from clp_lightning.serving.server import application

JSON = {"Content-Type": "application/json"}
SHARES = {"a": 0.25, "b": 0.75}
ROW = np.array([[0.25, 0.75]])
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HALF = "\ud800"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> SteerablePolicy:
    return SteerablePolicy.from_pretrained(write_policy(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def engine(policy):
    with serving.Engine(policy, rows=8, waiting=64) as found:
        yield found


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(application(Service(engine, "clp-full", Limits()), None)) as found:
        yield found


def body(**changes) -> dict:
    return {"model": "clp-full", "prompt": TEXTS[0], "weighting": SHARES} | changes


def chat(*messages: dict, **changes) -> dict:
    turns = list(messages) or [{"role": "user", "content": TEXTS[0]}]
    return {"model": "clp-full", "messages": turns, "weighting": SHARES} | changes


def post(client, path: str, content: dict):
    return client.post(path, content=json.dumps(content).encode("utf-8", "surrogatepass"), headers=JSON)


def texts(answer) -> list[str]:
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]


def streamed(answer, count: int) -> tuple[list[str], dict]:
    """Return the answers that a stream adds up to, and its numbers of tokens."""
    lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line and line != "data: [DONE]"]
    said = [""] * count
    for line in lines:
        for choice in line["choices"]:
            said[choice["index"]] += choice["text"] if "text" in choice else choice["delta"]["content"]
    return said, lines[-1]["usage"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_n_answers_are_those_of_the_seeds_that_follow(path, client, policy):
    """Answer j is what `generate` gives at seed + j; the prompt's tokens count once, the answers' all."""
    alone = [policy.generate([TEXTS[0]], ROW, seed=seed)[0] for seed in (7, 8, 9)]
    make = body if path == COMPLETIONS else chat
    answer = client.post(path, json=make(n=3, seed=7))
    assert texts(answer) == alone and len(set(alone)) == 3
    usage = answer.json()["usage"]
    singles = [client.post(path, json=make(seed=seed)).json()["usage"] for seed in (7, 8, 9)]
    assert usage["completion_tokens"] == sum(single["completion_tokens"] for single in singles)
    assert usage["prompt_tokens"] == singles[0]["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    parts = client.post(path, json=make(n=3, seed=7, stream=True, stream_options={"include_usage": True}))
    assert streamed(parts, 3) == (alone, usage)


def test_n_answers_to_each_of_several_prompts_come_in_the_prompts_order(client, policy):
    answer = client.post(COMPLETIONS, json=body(prompt=TEXTS[:2], n=2, best_of=2, seed=2**63 - 1))
    seeds = (2**63 - 1, 0)  # there is none behind the last
    assert texts(answer) == [policy.generate([text], ROW, seed=seed)[0] for text in TEXTS[:2] for seed in seeds]


def test_top_p_draws_among_the_most_probable(client):
    """What a top_p below every token's probability leaves is the greedy answer."""
    greedy = texts(client.post(COMPLETIONS, json=body(temperature=0)))
    assert set(texts(client.post(COMPLETIONS, json=body(n=8, top_p=1e-6)))) == set(greedy)
    assert len(set(texts(client.post(COMPLETIONS, json=body(n=8, top_p=1))))) > 1


def test_log_probabilities_are_those_that_log_probs_gives(client, policy):
    """Of the steered policy, whatever temperature and top_p; the end token, which is no text, has none."""
    asked_for = {"temperature": 0.7, "top_p": 0.9, "seed": 2, "n": 2}
    done = client.post(COMPLETIONS, json=body(logprobs=3, **asked_for)).json()["choices"]
    said = client.post(CHAT, json=chat(logprobs=True, top_logprobs=3, **asked_for)).json()["choices"]
    for choice, turn in zip(done, said, strict=True):
        told, content = choice["logprobs"], turn["logprobs"]["content"]
        ids = draws(policy, choice["index"] + 2)
        mask = torch.ones_like(ids, dtype=torch.bool)
        coefficients = policy.coefficients(ROW, 1)
        expected = policy.score(policy.tokenize([TEXTS[0]], coefficients), ids, mask, coefficients)[0].tolist()
        assert told["token_logprobs"] == pytest.approx(expected[: len(told["tokens"])], abs=1e-4)
        assert [each["logprob"] for each in content] == told["token_logprobs"]
        assert [each["token"] for each in content] == told["tokens"]
        assert told["tokens"] == [policy.tokenizer.decode([token]) for token in ids[0].tolist()]
        assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
        for each, top in zip(content, told["top_logprobs"], strict=True):
            likely = [other["logprob"] for other in each["top_logprobs"]]
            assert likely == sorted(likely, reverse=True) and len(likely) == 3 and each["logprob"] <= likely[0]
            assert top[each["token"]] >= each["logprob"] and max(top.values()) == likely[0]
            assert each["bytes"] == (None if "\ufffd" in each["token"] else list(each["token"].encode()))
    plain = client.post(COMPLETIONS, json=body(**asked_for)).json()["choices"]
    assert [choice["text"] for choice in plain] == [choice["text"] for choice in done]
    assert all(choice["logprobs"] is None for choice in plain)


def draws(policy, seed: int) -> torch.Tensor:
    """Return the tokens [1, T] of an answer at temperature 0.7 and top_p 0.9."""
    with serving.Engine(policy) as engine:
        each = batch.request(policy, TEXTS[0], ROW[0], lambda _: None, temperature=0.7, top_p=0.9, seed=seed)
        engine.submit([each])
    return torch.tensor([[token for token in each.tokens if token not in policy.end_ids]])


@pytest.mark.parametrize(("path", "make"), [(COMPLETIONS, body), (CHAT, chat)])
def test_a_stream_tells_each_log_probability_once(path, make, client):
    more = {"logprobs": 2} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    more |= {"n": 2, "stop": ["e", "a"]}  # some text is held back, and some is cut
    whole = client.post(path, json=make(**more)).json()["choices"]
    parts = [json.loads(line[6:]) for line in client.post(path, json=make(stream=True, **more)).text.splitlines()
             if line.startswith("data: {")]  # fmt: skip
    for index, choice in enumerate(whole):
        told = [each["logprobs"] for part in parts for each in part["choices"] if each["index"] == index]
        for key, values in choice["logprobs"].items():
            if isinstance(values, list) and key != "text_offset":
                assert [value for part in told for value in part[key]] == values and values


def test_tokens_are_the_text_that_they_spell(client, policy):
    plain = policy.tokenizer(TEXTS[:2])["input_ids"]
    ended = [[*tokens, policy.tokenizer.eos_token_id] for tokens in plain]  # as other tokenizers end a text
    expected = texts(client.post(COMPLETIONS, json=body(prompt=TEXTS[:2])))
    for prompt in (plain, ended, [[float(token) for token in tokens] for tokens in plain]):
        assert texts(client.post(COMPLETIONS, json=body(prompt=prompt))) == expected
    assert texts(client.post(COMPLETIONS, json=body(prompt=plain[0]))) == expected[:1]


def test_content_in_parts_and_an_empty_system_turn_are_read(client):
    expected = texts(client.post(CHAT, json=chat()))
    parts = [{"type": "text", "text": TEXTS[0][:9]}, {"type": "text", "text": TEXTS[0][9:]}]
    assert texts(client.post(CHAT, json=chat({"role": "user", "content": parts}))) == expected
    for role in ("system", "developer"):
        empty = [{"role": role, "content": ""}, {"role": "user", "content": TEXTS[0]}]
        assert texts(client.post(CHAT, json=chat(*empty))) == expected


@pytest.mark.parametrize("most", [7, 1e9, 10**30, 100_001])
def test_more_tokens_than_the_policy_writes_are_cut_to_its_limit(most, client):
    limit = client.get("/v1/models").json()["data"][0]["max_tokens"]
    for path, make, key in ((COMPLETIONS, body, "max_tokens"), (CHAT, chat, "max_completion_tokens")):
        answer = client.post(path, json=make(**{key: most})).json()
        assert answer["usage"]["completion_tokens"] <= limit == 6 and "choices" in answer


def test_what_changes_nothing_in_newer_clients_is_taken(client):
    more = {
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "modalities": ["text"],
        "parallel_tool_calls": True, "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y",
        "top_logprobs": 0,
    }  # fmt: skip
    assert texts(client.post(CHAT, json=chat(**more))) == texts(client.post(CHAT, json=chat()))
    assert client.post(COMPLETIONS, json=body(suffix="", best_of=1)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": ["a", ""]}, "prompt.1: String should have at least 1 character"),
        ({"prompt": []}, "prompt: List should have at least 1 item after validation, not 0"),
        ({"prompt": [[]]}, "prompt.0: List should have at least 1 item after validation, not 0"),
        ({"prompt": 5}, "prompt: Input should be a valid string or a valid list"),
        ({"prompt": ["a", 1]}, "prompt.1: Input should be a valid string"),
        ({"prompt": [1, 2, "a"]}, "prompt.2: Input should be a valid integer"),
        ({"prompt": [[1, 2], [3, "a"]]}, "prompt.1.1: Input should be a valid integer"),
        ({"prompt": [True]}, "prompt.0: Input should be a valid integer or a valid string or a valid list"),
        ({"prompt": [1, -2]}, "prompt.1: Input should be greater than or equal to 0"),
        ({"prompt": [1, 10**6]}, "prompt: there is no token 1000000; the policy's are 0 to 299"),
        ({"prompt": [[1], [300]]}, "prompt: there is no token 300; the policy's are 0 to 299"),
        ({"prompt": [0]}, "prompt 1 is empty; give some text to work on"),
        (
            {"prompt": ["a", HALF]},
            "prompt.1: Input should be a valid string, unable to parse raw data as a unicode string",
        ),
        ({"stop": [""]}, "stop.0: String should have at least 1 character"),
        ({"stop": ["a"] * 5}, "stop: List should have at most 4 items after validation, not 5"),
        ({"stop": 5}, "stop: Input should be a valid string or a valid list"),
        ({"weighting": "ref"}, "weighting: Input should be a valid JSON object or 'reference'"),
        ({"weighting": {"a-b": "x"}}, "weighting.a-b: Input should be a valid number"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 2.5}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": "1"}, "temperature: Input should be a valid number"),
        ({"stream": "yes"}, "stream: Input should be a valid boolean"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"n": 129}, "n: Input should be less than or equal to 128"),
        ({"n": 33}, "n: 33 answers to 1 text, at most 32 in one request"),
        ({"n": 17, "prompt": ["a", "b"]}, "n: 17 answers to 2 texts, at most 32 in one request"),
        ({"best_of": 3}, "best_of: 3 answers, but n is 1; leave it out: all that are written are sent"),
        ({"n": "x", "best_of": 3}, "n: Input should be a valid integer"),
        ({"logprobs": 6}, "logprobs: Input should be less than or equal to 5"),
        ({"logprobs": True}, "logprobs: Input should be a valid integer"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"top_p": 1.1}, "top_p: Input should be less than or equal to 1"),
        ({"a-b[c]": 1}, "a-b[c]: Extra inputs are not permitted"),
        ({HALF: 1}, "body: Input should be a valid string, unable to parse raw data as a unicode string"),
    ],
)
def test_a_completion_is_refused_with_the_key_and_what_is_wrong_there(changes, reason, client):
    refused = post(client, COMPLETIONS, body(**changes))
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, reason)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages: List should have at least 1 item after validation, not 0"),
        (["Hi"], "messages.0: Input should be a valid JSON object"),
        ([{"role": "user"}], "messages.0.content: Field required"),
        ([{"role": "user", "content": ""}], "messages.0.content: String should have at least 1 character"),
        ([{"role": "user", "content": []}], "messages.0.content: String should have at least 1 character"),
        ([{"role": "user", "content": HALF}], "messages.0.content: it holds half a character (a lone surrogate)"),
        (
            [{"role": "user", "content": [{"type": "text", "text": HALF}]}],
            "messages.0.content: it holds half a character (a lone surrogate)",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            'messages.0.content: part 1 is no text; only parts like {"type": "text", "text": "Hi"} are read',
        ),
        (
            [{"role": "tool", "content": "a"}],
            "messages.0.role: Input should be 'system', 'user', 'assistant' or 'developer'",
        ),
        (
            [{"role": "system", "content": ""}],
            "messages: there is none of the user; its last one is what the policy works on",
        ),
    ],
)
def test_a_chat_is_refused_with_the_message_and_what_is_wrong_there(messages, reason, client):
    refused = post(client, CHAT, chat() | {"messages": messages})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, reason)


def test_likely_tokens_are_told_with_log_probabilities_only(client):
    refused = client.post(CHAT, json=chat(top_logprobs=2))
    reason = "top_logprobs: nothing is told without logprobs; set that to true, too"
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, reason)
    assert client.post(CHAT, json=chat(top_logprobs=21, logprobs=True)).status_code == 400
    bare = client.post(CHAT, json=chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert bare and all(each["top_logprobs"] == [] for each in bare)
    for off in (None, False):
        assert client.post(CHAT, json=chat(logprobs=off)).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"{a", "application/json", "it is no JSON: Expecting property name enclosed in double quotes at character 1"),
        (b"\xff", "application/json", "it cannot be read as JSON in UTF-8"),
        (b"[[" * 10_000, "application/json", "it cannot be read as JSON in UTF-8"),
        (b"[]", "application/json", "expected a JSON object, but found a list"),
        (b'"a"', "application/json", "expected a JSON object, but found a text"),
        (b"", "application/json", "it is empty; send a JSON object"),
        (b"{}", None, "send it with the header Content-Type: application/json"),
        (b"{}", "text/plain", "send it with the header Content-Type: application/json"),
    ],
)
def test_a_body_that_is_no_json_object_is_told_what_it_is(content, kind, reason, client):
    refused = client.post(COMPLETIONS, content=content, headers={"Content-Type": kind} if kind else {})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, f"body: {reason}")


def test_tokens_that_do_not_fit_are_counted_in_header_and_usage(client, policy):
    long = "queue " * 100
    cut = policy.template.left_out(long)
    assert cut > 50
    for path, content in ((COMPLETIONS, body(prompt=long)), (CHAT, chat({"role": "user", "content": long}))):
        for stream in (False, True):
            answer = client.post(path, json=content | {"stream": stream, "stream_options": {"include_usage": True}})
            usage = streamed(answer, 1)[1] if stream else answer.json()["usage"]
            assert usage["prompt_tokens_cut"] == int(answer.headers["X-CLP-Prompt-Tokens-Cut"]) == cut
            assert usage["prompt_tokens"] == 40
    both = client.post(COMPLETIONS, json=body(prompt=[long, "queue", long], n=2))
    assert both.json()["usage"]["prompt_tokens_cut"] == 2 * cut  # each prompt is read once
    fits = client.post(COMPLETIONS, json=body(prompt="queue"))
    assert (fits.headers["X-CLP-Prompt-Tokens-Cut"], fits.json()["usage"]["prompt_tokens_cut"]) == ("0", 0)


def test_other_pages_may_ask_only_from_origins_that_are_allowed(engine):
    service = Service(engine, "clp-full", Limits())
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    off = TestClient(application(service, "secret"))
    assert off.options(COMPLETIONS, headers={"Origin": "https://my.site", **asks}).status_code == 401
    client = TestClient(application(service, "secret", origins=["https://my.site"]))
    for origin, allowed in (("https://my.site", True), ("https://other.site", False)):
        said = client.options(COMPLETIONS, headers={"Origin": origin, **asks})  # browsers ask this without the token
        assert (said.status_code == 200) is allowed
        headers = {"Origin": origin, "Authorization": "Bearer secret"}
        for answer in (
            client.post(COMPLETIONS, json=body(), headers=headers),
            client.post(COMPLETIONS, json=body(n=0), headers=headers),
            client.get("/v1/models", headers={"Origin": origin}),
        ):
            assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
    assert said.headers["Access-Control-Allow-Methods"] == "GET, POST"
    exposed = client.post(COMPLETIONS, json=body(), headers=headers).headers["Access-Control-Expose-Headers"]
    assert exposed == "X-CLP-Prompt-Tokens-Cut"
    assert "Access-Control-Allow-Origin" not in off.post(COMPLETIONS, json=body(), headers=headers).headers
    anybody = TestClient(application(service, None, origins=["*"]))
    assert anybody.get("/v1/models", headers={"Origin": "https://x"}).headers["Access-Control-Allow-Origin"] == "*"


def test_only_requests_to_the_servers_own_names_are_answered(engine):
    hosts = {"localhost", "127.0.0.1", "::1", "my.site"}
    client = TestClient(application(Service(engine, "clp-full", Limits()), None, hosts=hosts))
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "my.site:443"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.site:8000", "localhost.evil.site", "127.0.0.2", "[::1", ""):
        refused = client.get("/v1/models", headers={"Host": host})
        assert refused.status_code == 400, host
        assert re.match(r"Host: .* `clp serve --allow-host NAME`", refused.json()["error"]["message"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_told_at_once(stream, policy, monkeypatch):
    """Neither health nor a request hangs, nor one that was being answered when the engine's thread ended."""
    going = threading.Event()

    def die(batch, *_):
        assert going.wait(30)
        raise SystemExit("no memory")  # which ends a thread, as no failure of a request does

    monkeypatch.setattr(Batch, "step", die)
    reason = "nothing is answered any more (SystemExit: no memory); start the server again"
    with serving.Engine(policy) as engine:
        client = TestClient(application(Service(engine, "clp-full", Limits(seconds=60)), None))
        assert client.get("/health").json()["status"] == "ok"
        threading.Timer(0.1, going.set).start()
        running = client.post(COMPLETIONS, json=body(stream=stream))
        if stream:  # its status was sent before
            assert f'"error": {{"message": "{reason}"' in running.text and running.text.endswith("[DONE]\n\n")
        later = [
            client.get("/health"),
            client.post(CHAT, json=chat()),
            client.post(COMPLETIONS, json=body(stream=stream)),
        ]
        for answer in [*later, *([] if stream else [running])]:
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, reason)
            assert answer.json()["error"]["type"] == "server_error"
        assert client.get("/v1/models").status_code == 200
