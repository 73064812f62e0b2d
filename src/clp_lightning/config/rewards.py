"""The section `rewards` of `params.yaml`: a section per reward, with a `kind`, and what every kind can be told.

Of plug-ins alone some keys may be left out; what then holds stands here and in docs/rewards.md. A configuration that is
written out again holds the keys that were stated, no others.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import regex
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from clp_lightning.config.types import FunctionName, Name, Positive, Section, Share

MONITORS = ("rouge_l", "coverage", "kl", "length", "distinct_2")  # columns beside the rewards' in every report
MAX_TOKENS = 64  # of document and response together: the median document has 30, a response rarely 20
PLACEHOLDERS = ("{document}", "{response}")

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


def _template(value: str) -> str:
    if value not in ("pair", "chat") and not all(part in value for part in PLACEHOLDERS):
        raise ValueError(f"must be pair, chat or a text with {{document}} and {{response}}, but found {value!r}")
    return value


def _pattern(value: str) -> str:
    try:
        regex.compile(value)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}; correct the pattern {value!r}") from None
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # of a port that is no number
        valid = False
    if not valid:
        raise ValueError(f"must begin with http:// or https:// and name a host, but found {value!r}")
    if parts.username or parts.password:
        raise ValueError("holds a user or password; put a token into an environment variable and name it in token_env")
    return value


def _variable(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):  # the value is not repeated: it may be the token itself
        raise ValueError("must be the name of an environment variable (letters, digits and _), not the token itself")
    return value


Url = Annotated[str, AfterValidator(_url)]
Variable = Annotated[str, AfterValidator(_variable)]
Template = Annotated[str, AfterValidator(_template)]


class RewardSection(Section):
    """What every reward has; it is written out with the keys that were stated, so that new keys change no old run."""

    cache: Literal["none", "memory"] = "none"  # memory: a (document, response, reference) is scored once per process

    @model_serializer(mode="wrap")
    def _stated(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.model_fields_set}


class LearnedReward(RewardSection):
    """A reward that is a logit of a sequence-classification model."""

    kind: Literal["learned"]
    model: str  # folder, package:NAME/PATH or a name on the Hugging Face hub
    index: Count | None = None  # which logit: of an NLI model that of its label entailment; null: the only one
    template: Template = "pair"  # or chat (the tokenizer's), or a text with {document} and {response}
    max_tokens: Positive | None = None  # null: what the tokenizer says
    batch_size: Positive = 64
    allow_pickle: bool = False  # weights in .bin or .pt files can run code when they are loaded


class BrevityReward(RewardSection):
    """A reward that is minus the number of words."""

    kind: Literal["brevity"]
    min_words: Positive  # shorter answers gain nothing: an empty summary is no summary


class LengthReward(RewardSection):
    """A reward that is minus the distance to a length, or minus what is longer than allowed."""

    kind: Literal["length"]
    unit: Literal["words", "characters"]
    target: Positive | None = None
    tolerance: Count = 0  # distances up to this count as none
    max: Annotated[Positive | None, Field(validate_default=True)] = None

    @field_validator("max")
    @classmethod
    def _one_of_both(cls, value: int | None, info: Any) -> int | None:
        if (value is None) == (info.data.get("target") is None):
            raise ValueError("state either target or max, not both")
        if value is not None and info.data.get("tolerance"):
            raise ValueError("tolerance belongs to target; remove it, or state target instead of max")
        return value


class RegexReward(RewardSection):
    """A reward for responses in which a pattern is found."""

    kind: Literal["regex"]
    pattern: Annotated[str, AfterValidator(_pattern)]
    found: float = 1.0
    otherwise: float = 0.0
    count: bool = False  # times the number of matches that do not overlap


class ReadabilityReward(RewardSection):
    """A reward that is Flesch's reading ease of the response, 0 (hard) to 100 (easy)."""

    kind: Literal["readability"]


class RougeReward(RewardSection):
    """A reward that is ROUGE's F-measure to the reference summary, 0 to 1."""

    kind: Literal["rouge"]
    metric: Literal["rouge1", "rouge2", "rougeL"] = "rougeL"


class SimilarityReward(RewardSection):
    """A reward that is the cosine of an encoder's mean-pooled states of the response and of another text, -1 to 1."""

    kind: Literal["similarity"]
    encoder: str  # folder, package:NAME/PATH or a name on the Hugging Face hub
    to: Literal["document", "reference"]
    max_tokens: Positive = MAX_TOKENS
    batch_size: Positive = 64


class StoredSection(RewardSection):
    """What rewards have whose values may be kept on disk."""

    cache: Literal["none", "memory", "disk"] = "memory"  # type: ignore[assignment]  # disk: build/reward-cache/NAME


class PythonReward(StoredSection):
    """A reward that is a Python function of the project."""

    kind: Literal["python"]
    function: FunctionName
    batch_size: Positive | None = None  # null: all at once


class HttpReward(StoredSection):
    """A reward that a server computes."""

    kind: Literal["http"]
    url: Url
    references: bool = True  # whether the reference summaries are sent too
    batch_size: Positive = 64
    timeout: Seconds = 30.0  # of one request, in seconds
    retries: Count = 3
    token_env: Variable | None = None  # environment variable with a token, sent as Authorization: Bearer


class JudgeReward(StoredSection):
    """A reward that is how often a language model prefers the response to the reference summary."""

    kind: Literal["judge"]
    url: Url  # an OpenAI-compatible API, as in http://127.0.0.1:8000/v1
    model: str
    criterion: Annotated[str, Field(min_length=1)]
    batch_size: Positive = 8  # requests under way at once
    max_tokens: Positive = 8  # of an answer
    max_unreadable: Share = 0.1  # more answers that cannot be read as A, B or TIE are an error
    timeout: Seconds = 60.0
    retries: Count = 3
    token_env: Variable | None = None


AnyReward = (
    LearnedReward
    | BrevityReward
    | LengthReward
    | RegexReward
    | ReadabilityReward
    | RougeReward
    | SimilarityReward
    | PythonReward
    | HttpReward
    | JudgeReward
)


def check_rewards(rewards: Mapping[str, AnyReward]) -> Mapping[str, AnyReward]:
    """Raise `ValueError` for a name that reports would confuse: a monitor's, or another reward's but for - and _."""
    alike: dict[str, str] = {}
    for name in rewards:
        plain = name.replace("-", "_")
        if plain in MONITORS:
            raise ValueError(f"{name} is the name of a monitor ({', '.join(MONITORS)}); choose another")
        if plain in alike:
            raise ValueError(f"{alike[plain]} and {name} are too much alike; choose another name for one of them")
        alike[plain] = name
    return rewards


Rewards = Annotated[dict[Name, Annotated[AnyReward, Field(discriminator="kind")]], AfterValidator(check_rewards)]
