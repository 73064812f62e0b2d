"""The answers of `clp serve` in OpenAI's words, whole and streamed, with the tokens' log-probabilities if asked for."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from clp_lightning.serving.detokenize import UNKNOWN
from clp_lightning.serving.refusals import REASONS, failures


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_cut: int  # those that the prompts had beyond the policy's limit: it has not read them


class Choice(BaseModel):
    """What both kinds of answer say of one text."""

    index: int
    finish_reason: Literal["stop", "length"]


class Listed(BaseModel):
    """Log-probabilities of /v1/completions, a list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Likely(BaseModel):
    """A token and its log-probability; `bytes` is null for a token that is half a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class Told(Likely):
    """A token that was drawn."""

    top_logprobs: list[Likely]


class Content(BaseModel):
    """Log-probabilities of /v1/chat/completions."""

    content: list[Told]
    refusal: None = None


class Written(Choice):
    """One text of /v1/completions."""

    text: str
    logprobs: Listed | None


class Reply(BaseModel):
    """The policy's turn of a conversation."""

    role: Literal["assistant"]
    content: str


class Said(Choice):
    """One turn of /v1/chat/completions."""

    message: Reply
    logprobs: Content | None


class Whole(BaseModel):
    """What both kinds of answer have in common."""

    id: str
    created: int
    model: str
    usage: Usage


class Completed(Whole):
    """Answer of /v1/completions."""

    object: Literal["text_completion"]
    choices: list[Written]


class Chatted(Whole):
    """Answer of /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[Said]


class Spelled(NamedTuple):
    """A drawn token, its log-probability, and the most probable tokens in its place with theirs."""

    token: str
    logprob: float
    others: list[tuple[str, float]]


def _listed(drawn: Sequence[Spelled], offset: int) -> dict[str, Any]:
    offsets = itertools.accumulate((len(each.token) for each in drawn), initial=offset)
    tops: list[dict[str, float]] = [{} for _ in drawn]
    for top, each in zip(tops, drawn, strict=True):
        for token, logprob in [*each.others, (each.token, each.logprob)]:
            top.setdefault(token, logprob)  # tokens that are half characters look alike: the best one is told
    return Listed(
        tokens=[each.token for each in drawn],
        token_logprobs=[each.logprob for each in drawn],
        top_logprobs=tops,
        text_offset=list(offsets)[:-1],
    ).model_dump()


def _content(drawn: Sequence[Spelled], _: int) -> dict[str, Any]:
    def likely(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": None if UNKNOWN in token else list(token.encode())}

    told = [
        Told(**likely(each.token, each.logprob), top_logprobs=[Likely(**likely(*other)) for other in each.others])
        for each in drawn
    ]
    return Content(content=told).model_dump()


class Shape(NamedTuple):
    """How OpenAI writes one kind of answer: names of whole and streamed objects, a choice of either, log-probabilities."""

    prefix: str
    whole: str
    streamed: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    opening: dict[str, Any]  # what the first event of an answer says besides
    logprobs: Callable[[Sequence[Spelled], int], dict[str, Any]]  # of tokens, the first of which is so far in the text


COMPLETIONS = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}, {}, _listed
)
CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text}},
    lambda text: {"delta": {"content": text}}, {"role": "assistant"}, _content,
)  # fmt: skip


def answer(model: type[Whole]) -> dict[int | str, dict[str, Any]]:
    """Return everything that a request for an answer may get: the whole of it, a stream of its parts, or a refusal."""
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    description = "The answer; with `stream`, server-sent events that add to it."
    return {200: {"model": model, "content": stream, "description": description}, **failures(*REASONS)}
