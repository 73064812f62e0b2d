"""Continuous batching: requests with weightings of their own share every forward, and come and go between two tokens.

A `Batch` holds the rows that are being written. A new request's prompt is read once and its keys and values join the others',
padded on the left; a row that has ended leaves at once. The `Engine` runs a batch in a thread of its own and hands every
token to whoever asked for it. Shapes: B rows, K objectives, H hidden.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clp_lightning.errors import ClpError, UsageError
from clp_lightning.policy import SteerablePolicy
from clp_lightning.rollout import Prefix, draw


class BusyError(ClpError):
    """The queue is full; the caller should come back later."""


@dataclass(eq=False)
class Request:
    """One answer to be written, and how far it is; `deliver` is called from the engine's thread after every token.

    `coefficients` [1, M] steer it, all 0 is the reference policy. `uniform` float64 [T] are the random numbers, T the most
    tokens.
    """

    prompt: str
    coefficients: Tensor
    temperature: float
    uniform: Tensor
    stop: Sequence[str]
    deliver: Callable[["Request"], None]
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    text: str = ""
    finish: str | None = None  # "stop", "length", "cancelled" or "error"
    cancelled: bool = False


def request(
    policy: SteerablePolicy,
    prompt: str,
    weighting: np.ndarray | None,
    deliver: Callable[[Request], None],
    *,
    alpha: float | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Request:
    """Build a request that answers as `policy.generate` would with the same seed; raises `UsageError` as that does."""
    coefficients = policy.coefficients(None if weighting is None else weighting[None], 1, alpha)
    if coefficients is None:
        entries = len(policy.objectives if policy.listed is None else policy.listed)
        coefficients = torch.zeros(1, entries, device=policy.model.device)
    tokens = min(max_tokens or policy.generation.max_new_tokens, policy.generation.max_new_tokens)
    generator = torch.Generator(device=policy.model.device).manual_seed(seed)
    uniform = policy.random_numbers(1, generator, tokens)[0]
    return Request(prompt, coefficients, temperature, uniform, stop, deliver)


class Batch:
    """The rows that are being written."""

    def __init__(self, policy: SteerablePolicy) -> None:
        self.policy = policy
        self.requests: list[Request] = []
        self.prefix: Any = None
        self.hidden: Any = None  # [B, 1, H], what each row's next token is drawn from
        self.coefficients: Any = None  # [B, M]

    def admit(self, requests: Sequence[Request]) -> None:
        """Read the prompts of new requests and let them join."""
        coefficients = torch.cat([each.coefficients for each in requests])
        # the reference's row is all zeros: a prompted policy writes nothing for it
        prompts = self.policy.tokenize([each.prompt for each in requests], coefficients)
        for each, mask in zip(requests, prompts.mask, strict=True):
            each.prompt_tokens = int(mask.sum())
        prefix = Prefix(self.policy.model, prompts, self.policy.steer(coefficients), samples=1)
        if self.requests:
            self._join(prefix, coefficients)
        else:
            self.prefix, self.coefficients, self.hidden = prefix, coefficients, prefix.last
        self.requests += requests

    def step(self) -> None:
        """Write one token of every row and let those that have ended leave."""
        scores = functional.log_softmax(self.prefix.logits(self.hidden), dim=-1)
        drawn = self._next_tokens(scores)
        staying = []
        for row, (each, token) in enumerate(zip(self.requests, drawn.tolist(), strict=True)):
            self._write(each, token)
            each.deliver(each)
            if each.finish is None:
                staying.append(row)
        self._keep(staying)
        if staying:
            ids = drawn[staying][:, None]
            self.hidden = self.prefix.extend(ids, torch.ones_like(ids, dtype=torch.bool))

    def _next_tokens(self, scores: Tensor) -> Tensor:
        greedy = scores.argmax(-1)
        warm = [row for row, each in enumerate(self.requests) if each.temperature > 0]
        if warm:
            temperatures = scores.new_tensor([self.requests[row].temperature for row in warm])[:, None]
            numbers = [self.requests[row].uniform[len(self.requests[row].tokens)] for row in warm]
            greedy[warm] = draw(scores[warm] / temperatures, torch.stack(numbers)[:, None])
        return greedy

    def _write(self, each: Request, token: int) -> None:
        tokenizer = self.policy.tokenizer
        each.tokens.append(token)
        each.text = self.policy.decode(torch.tensor([each.tokens]))[0]
        if each.cancelled:
            each.finish = "cancelled"
        elif token == tokenizer.eos_token_id:
            each.finish = "stop"
        elif found := [place for mark in each.stop if (place := each.text.find(mark)) >= 0]:
            each.text, each.finish = each.text[: min(found)].rstrip(), "stop"
        elif len(each.tokens) == len(each.uniform):
            each.finish = "length"

    def _join(self, prefix: Prefix, coefficients: Tensor) -> None:
        old, width = self.prefix, max(self.prefix.mask.shape[1], prefix.mask.shape[1])
        for mine, theirs in zip(old.cache.layers, prefix.cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, width, 2), _padded(theirs.keys, width, 2)])
            mine.values = torch.cat([_padded(mine.values, width, 2), _padded(theirs.values, width, 2)])
        old.mask = torch.cat([_padded(old.mask, width, 1), _padded(prefix.mask, width, 1)])
        old.position = torch.cat([old.position, prefix.position])
        self.hidden = torch.cat([self.hidden, prefix.last])
        self._steer(torch.cat([self.coefficients, coefficients]))

    def _keep(self, rows: list[int]) -> None:
        """Keep these rows only, without the columns that are padding in all of them."""
        if len(rows) < len(self.requests):
            self.requests = [self.requests[row] for row in rows]
            if not rows:
                self.prefix = self.hidden = self.coefficients = None
                return
            prefix = self.prefix
            prefix.mask, prefix.position = prefix.mask[rows], prefix.position[rows]
            start = int(prefix.mask.any(0).int().argmax())
            prefix.mask = prefix.mask[:, start:]
            for layer in prefix.cache.layers:
                layer.keys, layer.values = layer.keys[rows][:, :, start:], layer.values[rows][:, :, start:]
            self._steer(self.coefficients[rows])

    def _steer(self, coefficients: Tensor) -> None:
        self.coefficients, self.prefix.steer = coefficients, self.policy.steer(coefficients)
        self.prefix.rows = torch.arange(len(coefficients), device=coefficients.device)


def _padded(values: Tensor, width: int, dim: int) -> Tensor:
    """Pad a tensor on the left of `dim` to `width` with zeros (False)."""
    missing = width - values.shape[dim]
    if not missing:
        return values
    size = list(values.shape)
    size[dim] = missing
    return torch.cat([values.new_zeros(size), values], dim=dim)


class Engine:
    """Writes requests of any weighting together, at most `rows` at a time; `waiting` more may queue.

    Raises `UsageError` for policies that cannot be served: encoder-decoders and mixtures.
    """

    def __init__(self, policy: SteerablePolicy, *, rows: int = 32, waiting: int = 256) -> None:
        if policy.model.config.is_encoder_decoder or policy.mixture is not None or policy.experts is None:
            raise UsageError("this policy cannot be served: only decoder-only models with experts can")
        self.policy, self.rows = policy, rows
        self.batch = Batch(policy)
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was asked for, then stop."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes a thread that waits
        self._thread.join()

    @property
    def running(self) -> int:
        """Number of rows that are being written."""
        return len(self.batch.requests)

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return self._queue.qsize()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all of the requests, or raise `BusyError` and none."""
        if self._closing.is_set():
            raise BusyError("the server is shutting down")
        if self._queue.qsize() + len(requests) > self._queue.maxsize:
            raise BusyError(f"{self._queue.maxsize} requests wait already; try again later")
        for each in requests:
            try:
                self._queue.put_nowait(each)
            except queue.Full:
                for other in requests:
                    other.cancelled = True
                raise BusyError(f"{self._queue.maxsize} requests wait already; try again later") from None

    @torch.no_grad()
    def _run(self) -> None:
        assert self.policy.experts is not None
        with self.policy.experts.frozen():
            while self.batch.requests or not (self._closing.is_set() and self._queue.empty()):
                admitted = self._next()
                try:
                    if admitted:
                        self.batch.admit(admitted)
                    if self.batch.requests:
                        self.batch.step()
                except Exception as error:  # one bad batch must not end the server
                    for each in {id(r): r for r in [*self.batch.requests, *admitted]}.values():
                        each.text, each.finish = f"{type(error).__name__}: {error}", "error"
                        each.deliver(each)
                    self.batch = Batch(self.policy)

    def _next(self) -> list[Request]:
        """Take what waits, as far as there is room; with nothing to write, wait for it."""
        found: list[Request] = []
        while len(found) + len(self.batch.requests) < self.rows:
            try:
                idle = not (found or self.batch.requests or self._closing.is_set())
                each = self._queue.get(block=idle)
            except queue.Empty:
                break
            if each is not None and not each.cancelled:
                found.append(each)
            elif each is None:
                break
        return found
