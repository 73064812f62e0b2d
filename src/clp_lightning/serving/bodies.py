"""The bodies of `clp serve`: what a request may say, and what the server tells of itself, as /openapi.json has them."""

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Limits(NamedTuple):
    """What one request may ask for: bytes of its body, answers to write, seconds until they must be complete."""

    body: int = 1_000_000
    answers: int = 32
    seconds: float = 120.0


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 5.0 and 5e0 are the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _joined(content: Any) -> Any:
    """Return the texts of a message's parts, one after the other."""
    if not isinstance(content, list):
        return content
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'part {number} is no text; only parts like {{"type": "text", "text": "Hi"}} are read')
    return "".join(part["text"] for part in content)


Text = Annotated[str, Field(min_length=1)]
Integer = Annotated[int, BeforeValidator(_integral, json_schema_input_type=int)]
Tokens = Annotated[list[Annotated[Integer, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
# a body of 1 MB that is wrong everywhere has one error, not a million
Prompts = (
    Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
)
Most = Annotated[Integer, Field(ge=1)]  # of tokens; what is more than the policy's own limit is cut to it
Zero = Annotated[float, Field(ge=0, le=0)]


class StreamOptions(BaseModel):
    """What a stream tells besides: with `include_usage` its last event has the numbers of tokens."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Steered(BaseModel):
    """What both kinds of request have in common; unknown keys are refused, since ignoring one would change the answer.

    Keys that OpenAI's clients send at values that change nothing are taken, and so is null for every key.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
    model: Text
    weighting: dict[str, float] | Literal["reference"] | None = (
        None  # shares of the objectives; "reference": no steering
    )
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None  # KL strength, for a policy that takes one
    max_tokens: Most | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0  # draw among the most probable tokens of this probability
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    n: Annotated[Integer, Field(ge=1, le=128)] = 1  # answers to each prompt: those of the seeds seed, seed + 1, ...
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        said = {key: value for key, value in values.items() if value is not None}
        return said if said.get("logprobs") is not False else {**said, "logprobs": None}

    @property
    def alternatives(self) -> int | None:
        """How many of the most probable tokens are told beside each that was drawn, None for no log-probabilities."""
        return None


class Completion(Steered):
    """Body of /v1/completions; `prompt` is a text or its tokens, or a list of either."""

    prompt: Text | Tokens | Prompts
    best_of: Integer | None = None
    echo: Literal[False] = False
    suffix: Literal[""] = ""
    logprobs: Annotated[Integer, Field(ge=0, le=5)] | None = None

    @property
    def alternatives(self) -> int | None:
        """The body's `logprobs`."""
        return self.logprobs

    @field_validator("best_of")
    @classmethod
    def _all_are_given_back(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != info.data.get("n", value):
            raise ValueError(f"{value} answers, but n is {info.data['n']}; leave it out: all that are written are sent")
        return value


class Message(BaseModel):
    """One turn of a conversation; a system turn may be empty, as clients with an empty field for it send."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant", "developer"]
    content: Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[dict[str, str]])]
    name: str | None = None  # of who speaks; nothing reads it

    @field_validator("content")
    @classmethod
    def _says_something(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("role") not in ("system", "developer"):
            raise ValueError("String should have at least 1 character")
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("it holds half a character (a lone surrogate)")
        return value


class TextFormat(BaseModel):
    """The only form of an answer."""

    type: Literal["text"]


class Chat(Steered):
    """Body of /v1/chat/completions; `max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Most | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=20)] = 0
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def alternatives(self) -> int | None:
        """The body's `top_logprobs`, where it has `logprobs`."""
        return self.top_logprobs if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _of_what_is_told(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs", True):
            raise ValueError("nothing is told without logprobs; set that to true, too")
        return value

    @field_validator("messages")
    @classmethod
    def _empty_system_turns_say_nothing(cls, messages: list[Message]) -> list[Message]:
        return [message for message in messages if message.content.strip() or message.role in ("user", "assistant")]


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
    """Answer of /health while requests are answered: how many answers are being written, and how many wait."""

    status: Literal["ok"] = "ok"
    running: int
    waiting: int
