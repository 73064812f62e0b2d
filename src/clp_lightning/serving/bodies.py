"""The bodies of `clp serve`: what a request may say, and the shape of every answer, as /openapi.json tells them."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]


class Limits(NamedTuple):
    """What one request may ask for: bytes of its body, prompts in it, seconds until its answer must be complete."""

    body: int = 1_000_000
    prompts: int = 32
    seconds: float = 120.0


One = Annotated[float, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class StreamOptions(BaseModel):
    """What a stream tells besides: with `include_usage` its last event has the numbers of tokens."""

    include_usage: bool = False


class Steered(BaseModel):
    """What both kinds of request have in common; unknown keys are refused, since ignoring one would change the answer.

    Keys that OpenAI's clients send at values that change nothing are taken, and so is null for every key.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: Text
    weighting: dict[str, float] | Literal["reference"] | None = (
        None  # shares of the objectives; "reference": no steering
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None  # KL strength, for a policy that takes one
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    user: str | None = None
    top_p: One = 1.0
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class Completion(Steered):
    """Body of /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    best_of: Literal[1] = 1
    echo: Literal[False] = False


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "developer"]
    content: Text
    name: str | None = None  # of who speaks; nothing reads it


class Chat(Steered):
    """Body of /v1/chat/completions; `max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    """What both kinds of answer say of one text; nothing reports log-probabilities."""

    index: int
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Written(Choice):
    """One text of /v1/completions."""

    text: str


class Reply(BaseModel):
    """The policy's turn of a conversation."""

    role: Literal["assistant"]
    content: str


class Said(Choice):
    """One turn of /v1/chat/completions."""

    message: Reply


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


class Card(BaseModel):
    """The policy, and what it takes."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "clp"
    created: int = 0
    objectives: list[str]
    takes_alpha: bool
    max_tokens: int
    max_prompt_tokens: int


class Cards(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Card]


class Health(BaseModel):
    """Answer of /health: how many answers are being written, and how many wait."""

    status: Literal["ok"] = "ok"
    running: int
    waiting: int


class Problem(BaseModel):
    """Why a request was refused, in a sentence."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None = None
    code: str | None = None


class Failure(BaseModel):
    """Body of every refusal, as OpenAI's clients read it."""

    error: Problem


REASONS = {
    400: "The body says something that cannot be answered; the message names the key.",
    401: "The server's token is missing or wrong.",
    404: "Another model is served here.",
    408: "The answer took longer than the server waits.",
    411: "The body's length is missing.",
    413: "The body is too large.",
    429: "Too many answers wait, or the server is shutting down.",
    500: "The answer failed.",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of these statuses as FastAPI declares them."""
    return {status: {"model": Failure, "description": REASONS[status]} for status in statuses}


def answer(model: type[Whole]) -> dict[int | str, dict[str, Any]]:
    """Return everything that a request for an answer may get: the whole of it, a stream of its parts, or a refusal."""
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    description = "The answer; with `stream`, server-sent events that add to it."
    return {200: {"model": model, "content": stream, "description": description}, **failures(*REASONS)}
