"""Rows that are written together: requests with weightings of their own share every forward, and come and go between two tokens.

A new request's prompt is read once and its keys and values join the others', padded on the left; a row that has ended leaves
at once. Where rows of different length cannot be laid side by side (an encoder-decoder, a sliding window), those that came
together stay a group of their own, and groups write in turns. Shapes: B rows, K objectives, M experts, H hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from clp_lightning.errors import UsageError, one_line
from clp_lightning.policy.prompts import padded
from clp_lightning.policy.rollout import Prefix, draw, nucleus
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.policy.tokens import check_sampling, cut, first_stop
from clp_lightning.serving.detokenize import UNKNOWN, Detokenizer

LOWEST = -9999.0  # OpenAI's log-probability of what cannot be


class Drawn(NamedTuple):
    """A token that was drawn, its log-probability, and the most probable ones in its place, the best first."""

    token: int
    logprob: float
    others: list[tuple[int, float]]


@dataclass(eq=False)
class Request:
    """One answer to be written, and how far it is; `deliver` is called from the writing thread.

    `prompt` are its tokens, in the template. `coefficients` [1, M] steer it, all 0 is the reference policy. `uniform` float64 [T]
    are the random numbers, T the most tokens, and `top_p` is `nucleus`. `text` is there, and delivered, after every token if
    `streamed`, else at the end. With `alternatives` the tokens' log-probabilities are kept in `drawn`, with so many others: those
    of the steered policy, whatever temperature and `top_p`.
    """

    prompt: Sequence[int]
    coefficients: Tensor
    temperature: float
    uniform: Tensor
    stop: Sequence[str]
    deliver: Callable[["Request"], None]
    streamed: bool = True
    top_p: float = 1.0
    alternatives: int | None = None
    drawn: list[Drawn] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None  # "stop", "length", "cancelled" or "error"
    cancelled: bool = False
    detokenizer: Detokenizer | None = None

    @property
    def prompt_tokens(self) -> int:
        """The length of the prompt."""
        return len(self.prompt)

    def note(self, token: int, scores: Tensor) -> None:
        """Keep what was drawn from `scores` [V]; JSON has no infinities."""
        assert self.alternatives is not None
        values, ids = scores.clamp(min=LOWEST).topk(min(self.alternatives, len(scores)))
        others = list(zip(ids.tolist(), values.tolist(), strict=True))
        self.drawn.append(Drawn(token, max(float(scores[token]), LOWEST), others))

    def append(self, token: int, policy: SteerablePolicy) -> None:
        """Take the next token; an answer ends with one that ends responses, a stop string or its length, or is cancelled."""
        self.tokens.append(token)
        finish = None
        if self.cancelled:
            finish = "cancelled"
        elif token in policy.end_ids:
            finish = "stop"
        elif len(self.tokens) == len(self.uniform):
            finish = "length"
        elif not (self.streamed or self.stop) or not self._read(policy):
            return
        # while it is written, the text is put together from parts; what counts is the text of all tokens
        self.text, stopped = cut(policy.text(self.tokens), self.stop)
        self.finish = "stop" if stopped else finish

    def _read(self, policy: SteerablePolicy) -> bool:
        """Decode what is new, and tell whether one of the stop strings is in it."""
        self.detokenizer = self.detokenizer or Detokenizer(policy.text)
        text = self.detokenizer(self.tokens).lstrip()
        start = len(self.text.rstrip(UNKNOWN)) - max(map(len, self.stop), default=0)
        self.text = text.rstrip()
        return first_stop(text, self.stop, max(0, start)) is not None

    def hand_over(self) -> None:
        """Deliver what is there; where that fails, nobody reads the answer any more, and others must not suffer from it."""
        try:
            self.deliver(self)
        except Exception:
            self.cancelled = True

    def fail(self, error: BaseException) -> None:
        """End with an error, if it has not ended."""
        if self.finish is None:
            self.text, self.finish = f"{type(error).__name__}: {error}", "error"
            self.hand_over()


def request(
    policy: SteerablePolicy,
    prompt: str,
    weighting: np.ndarray | None,
    deliver: Callable[[Request], None],
    *,
    alpha: float | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    streamed: bool = True,
    alternatives: int | None = None,
) -> Request:
    """Build a request that answers as `policy.generate` would with the same seed; raises `UsageError` as that does.

    The prompt is put into the template here, and not where all answers are written: a template that raises is its own
    request's affair.
    """
    check_sampling(top_p, stop)
    coefficients = policy.coefficients(None if weighting is None else weighting[None], 1, alpha)
    if coefficients is None:
        entries = len(policy.objectives if policy.listed is None else policy.listed)
        coefficients = torch.zeros(1, entries, device=policy.model.device)
    tokens = min(max_tokens or policy.generation.max_new_tokens, policy.generation.max_new_tokens)
    generator = torch.Generator().manual_seed(seed)
    uniform = policy.random_numbers(1, generator, tokens)[0]
    tokens_in = _tokens(policy, prompt, coefficients)
    return Request(tokens_in, coefficients, temperature, uniform, stop, deliver, streamed, top_p, alternatives)


def _tokens(policy: SteerablePolicy, prompt: str, coefficients: Tensor) -> list[int]:
    # the reference's row is all zeros: a prompted policy writes nothing for it
    try:
        return policy.tokenize([prompt], coefficients).ids[0].tolist()
    except UsageError:
        raise
    except Exception as error:  # a chat template may raise anything
        raise UsageError(f"prompt: the model's chat template refuses it ({one_line(error)})") from error


class Group:
    """Rows in one cache; `joinable` says that others can be laid beside them."""

    def __init__(self, policy: SteerablePolicy, requests: Sequence[Request]) -> None:
        self.policy, self.requests = policy, list(requests)
        self.coefficients = torch.cat([each.coefficients for each in requests])  # [B, M]
        prompts = padded([each.prompt for each in requests], policy.tokenizer.pad_token_id, policy.model.device)
        self.prefix = Prefix(policy.model, prompts, policy.steer(self.coefficients), samples=1)
        self.hidden = self.prefix.last  # [B, 1, H], what each row's next token is drawn from
        layers = getattr(self.prefix.cache, "layers", [])
        self.joinable = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def join(self, other: "Group") -> None:
        """Lay the rows of another group beside these; both must be joinable."""
        old, new = self.prefix, other.prefix
        width = max(old.mask.shape[1], new.mask.shape[1])
        for mine, theirs in zip(old.cache.layers, new.cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, width, 2), _padded(theirs.keys, width, 2)])
            mine.values = torch.cat([_padded(mine.values, width, 2), _padded(theirs.values, width, 2)])
        old.mask = torch.cat([_padded(old.mask, width, 1), _padded(new.mask, width, 1)])
        old.position = torch.cat([old.position, new.position])
        self.hidden = torch.cat([self.hidden, other.hidden])
        self.requests += other.requests
        self._steer(torch.cat([self.coefficients, other.coefficients]))

    def step(self) -> None:
        """Write one token of every row and let those that have ended leave."""
        scores = functional.log_softmax(self.prefix.logits(self.hidden), dim=-1)
        drawn = self._next_tokens(scores)
        staying = []
        for row, (each, token) in enumerate(zip(self.requests, drawn.tolist(), strict=True)):
            if each.alternatives is not None and token not in self.policy.end_ids:
                each.note(token, scores[row])
            each.append(token, self.policy)
            if each.finish is None:
                staying.append(row)
            if each.finish is not None or each.streamed:
                each.hand_over()
        if len(staying) < len(self.requests):
            self._keep(staying)
        if staying:
            ids = drawn[staying][:, None]
            self.hidden = self.prefix.extend(ids, torch.ones_like(ids, dtype=torch.bool))

    def _next_tokens(self, scores: Tensor) -> Tensor:
        tokens = scores.argmax(-1)
        warm = [row for row, each in enumerate(self.requests) if each.temperature > 0]
        if warm:
            asked = [self.requests[row] for row in warm]
            scores = scores[warm] / scores.new_tensor([each.temperature for each in asked])[:, None]
            if any(each.top_p < 1 for each in asked):
                scores = nucleus(
                    scores, scores.new_tensor([each.top_p for each in asked], dtype=torch.float64)[:, None]
                )
            tokens[warm] = draw(scores, torch.stack([each.uniform[len(each.tokens)] for each in asked])[:, None])
        return tokens

    def _keep(self, rows: list[int]) -> None:
        """Keep these rows only, without the columns that are padding in all of them."""
        self.requests = [self.requests[row] for row in rows]
        if not rows:
            return
        prefix, index = self.prefix, torch.tensor(rows, device=self.coefficients.device)
        prefix.mask = prefix.mask[index]
        prefix.cache.batch_select_indices(index)
        if self.joinable:
            start = int(prefix.mask.any(0).int().argmax())
            prefix.mask = prefix.mask[:, start:]
            for layer in prefix.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, start:], layer.values[:, :, start:]
        if self.policy.model.config.is_encoder_decoder:
            prefix.states = prefix.states[index]
        else:
            prefix.position = prefix.position[index]
        self._steer(self.coefficients[index])

    def _steer(self, coefficients: Tensor) -> None:
        self.coefficients, self.prefix.steer = coefficients, self.policy.steer(coefficients)
        self.prefix.rows = torch.arange(len(coefficients), device=coefficients.device)


class Batch:
    """All rows that are being written: one group that newcomers join, or several side by side."""

    def __init__(self, policy: SteerablePolicy) -> None:
        self.policy = policy
        self.groups: list[Group] = []

    @property
    def requests(self) -> list[Request]:
        """The requests that are being written."""
        return [each for group in self.groups for each in group.requests]

    def admit(self, requests: Sequence[Request]) -> None:
        """Read the prompts of new requests, which join the others with the next token; if that fails, others are as before."""
        self.groups.append(Group(self.policy, requests))

    def step(self) -> None:
        """Write one token of every row and let those that have ended leave."""
        if len(self.groups) > 1 and self.groups[0].joinable:
            for group in self.groups[1:]:
                self.groups[0].join(group)
            del self.groups[1:]
        for group in self.groups:
            group.step()
        self.groups = [group for group in self.groups if group.requests]


def _padded(values: Tensor, width: int, dim: int) -> Tensor:
    """Pad a tensor on the left of `dim` to `width` with zeros (False)."""
    missing = width - values.shape[dim]
    if not missing:
        return values
    size = list(values.shape)
    size[dim] = missing
    return torch.cat([values.new_zeros(size), values], dim=dim)
