"""From a body to the engine's requests, and from their tokens to an answer in OpenAI's words, whole or as a stream."""

import asyncio
import contextlib
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from clp_lightning import weightings
from clp_lightning.config.parameters import Generation
from clp_lightning.data import transcripts
from clp_lightning.errors import ClpError, plural
from clp_lightning.serving import batch
from clp_lightning.serving import engine as serving
from clp_lightning.serving.bodies import Limits, Message, Prompts, Steered, Tokens
from clp_lightning.serving.refusals import Refused
from clp_lightning.serving.replies import Shape, Spelled

CUT = "X-CLP-Prompt-Tokens-Cut"  # header: tokens of the prompts that were beyond the policy's limit


class Service:
    """Turns bodies into the engine's requests and their tokens into answers."""

    def __init__(self, engine: serving.Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.objectives = engine.policy.objectives
        self.spelling = functools.lru_cache(2**16)(lambda token: str(engine.policy.tokenizer.decode([token])))
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clp_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter("clp_tokens", "Tokens by kind.", ["kind"], registry=self.registry)
        self.seconds = Histogram("clp_request_seconds", "Seconds until an answer was complete.", registry=self.registry)
        running = Gauge("clp_running", "Answers that are being written.", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("clp_waiting", "Answers that wait.", registry=self.registry)
        waiting.set_function(lambda: engine.queued)

    def weighting(self, body: Steered) -> np.ndarray | None:
        """Return the body's weighting [K], None for the reference policy; raises `Refused`."""
        if body.model != self.name:
            raise Refused(404, f"model {body.model!r} is not served here; use {self.name!r}", "model_not_found")
        if body.weighting is None:
            example = ", ".join(f'"{name}": {1 / len(self.objectives):.2g}' for name in self.objectives)
            raise Refused(400, f'weighting: give shares of the objectives, e.g. {{{example}}}, or "reference"')
        if body.weighting == "reference":
            return None
        assert isinstance(body.weighting, dict)
        return weightings.to_array(body.weighting, self.objectives)

    def check_alive(self) -> None:
        """Raise `Refused` when nothing would be answered any more."""
        if not self.engine.alive:
            try:
                self.engine.submit([])  # says why
            except ClpError as error:
                raise Refused(503, str(error), "dead") from error
            raise Refused(503, "nothing is answered yet; come back later")

    def texts(self, prompt: str | Tokens | Prompts) -> list[str]:
        """Return the texts of a completion's prompt; raises `Refused` for tokens that the policy does not have.

        Special tokens among the tokens, such as the first that a tokenizer adds, are left out: the template puts its own.
        """
        if isinstance(prompt, str):
            return [prompt]
        given: list[Any] = [prompt] if isinstance(prompt[0], int) else list(prompt)
        return [each if isinstance(each, str) else self._text(each) for each in given]

    def _text(self, tokens: Tokens) -> str:
        tokenizer = self.engine.policy.tokenizer
        if unknown := [token for token in tokens if token >= len(tokenizer)]:
            raise Refused(400, f"prompt: there is no token {unknown[0]}; the policy's are 0 to {len(tokenizer) - 1}")
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def submit(self, prompts: list[str], body: Steered, most: int | None) -> "Answers":
        """Queue `n` answers per prompt; raises `Refused` for what cannot be steered or when too many wait."""
        self.check_alive()
        if len(prompts) * body.n > self.limits.answers:
            texts = plural(len(prompts), "text")
            asked_for = f"n: {body.n} answers to {texts}" if body.n > 1 else f"prompt: {texts}"
            raise Refused(400, f"{asked_for}, at most {self.limits.answers} in one request")
        weighting, stop = self.weighting(body), [body.stop] if isinstance(body.stop, str) else body.stop or []
        answers = Answers(asyncio.get_running_loop(), len(prompts) * body.n)
        for number, prompt in enumerate(prompts, 1):
            if not prompt.strip():
                raise Refused(400, f"prompt {number} is empty; give some text to work on")
            for choice in range(body.n):
                request = batch.request(
                    self.engine.policy, prompt, weighting, functools.partial(answers.deliver, len(answers.requests)),
                    alpha=body.alpha, temperature=body.temperature, top_p=body.top_p, seed=(body.seed + choice) % 2**63,
                    max_tokens=most, stop=stop, streamed=body.stream, alternatives=body.alternatives,
                )  # fmt: skip
                answers.requests.append(request)
            answers.prompt_tokens += request.prompt_tokens
            answers.cut += self.engine.policy.template.left_out(prompt)
        self.engine.submit(answers.requests)
        return answers

    async def respond(
        self, answers: "Answers", shape: Shape, request: Request, *, stream: bool, usage: bool
    ) -> Response:
        """Return the answers when all are complete, or as a stream; raises `Refused` when they fail or take too long."""
        head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        told = {CUT: str(answers.cut)}
        if stream:
            events = self._events(answers, head, shape, usage=usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=told)
        ended: dict[int, Change] = {}
        async for change in answers.follow(self, request.is_disconnected):
            ended[change.position] = change
        if len(ended) < answers.count:
            return Response(status_code=499)  # for the metrics: whoever asked has gone
        choices = [
            {
                "index": position,
                **shape.choice(change.text),
                "finish_reason": change.finish,
                "logprobs": self._logprobs(answers.requests[position], shape),
            }
            for position, change in sorted(ended.items())
        ]
        whole = {**head, "object": shape.whole, "choices": choices, "usage": self._account(answers)}
        return JSONResponse(whole, headers=told)

    async def _events(
        self, answers: "Answers", head: dict[str, Any], shape: Shape, *, usage: bool
    ) -> AsyncIterator[str]:
        """Yield server-sent events: what each token added to its answer's text, at last the reason of ending.

        With `usage` every event has that key, and one more at the end the numbers of tokens.
        """
        sent, told, begun = [""] * answers.count, [0] * answers.count, [False] * answers.count
        more: dict[str, Any] = {"usage": None} if usage else {}
        try:
            async for position, text, finish, drawn in answers.follow(self):
                ready = text if finish else _sure(text, answers.requests[position].stop)
                new = ready[len(sent[position]) :] if ready.startswith(sent[position]) else ""
                if new or finish:
                    added = shape.delta(new)
                    if not begun[position] and shape.opening:
                        added["delta"] = shape.opening | added["delta"]
                    begun[position] = True
                    part = slice(told[position], drawn)
                    logprobs = self._logprobs(answers.requests[position], shape, part, len(sent[position]))
                    sent[position], told[position] = sent[position] + new, drawn
                    choice = {"index": position, **added, "finish_reason": finish, "logprobs": logprobs}
                    yield f"data: {json.dumps({**head, 'object': shape.streamed, 'choices': [choice], **more})}\n\n"
            counts = self._account(answers)
            if usage:
                yield f"data: {json.dumps({**head, 'object': shape.streamed, 'choices': [], 'usage': counts})}\n\n"
        except Refused as error:  # the status has been sent already
            yield f"data: {json.dumps({'error': {'message': error.message, 'code': error.code}})}\n\n"
        yield "data: [DONE]\n\n"

    def _logprobs(
        self, request: batch.Request, shape: Shape, part: slice = slice(None), offset: int = 0
    ) -> dict[str, Any] | None:
        """Return the log-probabilities of a part of an answer, `offset` characters into it; None if not asked for."""
        if request.alternatives is None:
            return None
        spell = self.spelling
        drawn = request.drawn[part]
        told = [Spelled(spell(token), score, [(spell(o), v) for o, v in others]) for token, score, others in drawn]
        return shape.logprobs(told, offset)

    def _account(self, answers: "Answers") -> dict[str, int]:
        """Count the tokens of finished answers and return OpenAI's `usage`."""
        prompt, completion = answers.prompt_tokens, sum(len(each.tokens) for each in answers.requests)
        self.tokens.labels("prompt").inc(prompt)
        self.tokens.labels("completion").inc(completion)
        return {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_cut": answers.cut,
        }  # fmt: skip


class Change(NamedTuple):
    """How far an answer is: its text, why it ended if it has, and how many tokens have log-probabilities."""

    position: int
    text: str
    finish: str | None
    drawn: int


class Answers:
    """The answers to one HTTP request, filled from the engine's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.loop, self.count = loop, count
        self.requests: list[batch.Request] = []
        self.prompt_tokens, self.cut = 0, 0  # tokens of the prompts, and those that did not fit
        self.changes: asyncio.Queue[Change] = asyncio.Queue()

    def deliver(self, position: int, request: batch.Request) -> None:
        """Pass on an answer's text so far; called from the engine's thread."""
        change = Change(position, request.text, request.finish, len(request.drawn))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.changes.put_nowait, change)

    async def follow(
        self, service: Service, gone: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncIterator[Change]:
        """Yield how far an answer is after each delivery, until all have ended; cancels them when left.

        Ends early when `gone`, asked every second, says that nobody waits. Raises `Refused` after the service's seconds, for
        failures, and within a second of the engine's end.
        """
        seconds = service.limits.seconds
        left, until = self.count, self.loop.time() + seconds
        try:
            while left:
                try:
                    async with asyncio.timeout_at(min(until, self.loop.time() + 1)):
                        change = await self.changes.get()
                except TimeoutError:
                    if self.loop.time() >= until:
                        message = f"the answer took longer than {seconds:g} s; ask for fewer tokens"
                        raise Refused(408, message) from None
                    service.check_alive()
                    if gone is not None and await gone():
                        return
                    continue
                if change.finish == "error":
                    service.check_alive()
                    raise Refused(500, f"the answer failed: {change.text}")
                left -= change.finish is not None
                yield change
        finally:
            for each in self.requests:
                each.cancelled = True


def _sure(text: str, stops: Sequence[str]) -> str:
    """Return what of a growing text stays: not half a character at its end, nor what a stop string may begin with."""
    ready = text.rstrip("�")
    held = [size for stop in stops for size in range(1, len(stop)) if ready.endswith(stop[:size])]
    # an answer that ends at a stop string loses the space before it
    return ready[: len(ready) - max(held, default=0)].rstrip() if held else ready


def asked(generation: Generation, messages: Sequence[Message]) -> str:
    """Return the document that a chat's messages are: all of them for a policy of conversations, else the user's last.

    Raises `Refused` when there is none of the user, and for what is no conversation.
    """
    spoken = [message.content for message in messages if message.role == "user"]
    if not spoken:
        raise Refused(400, "messages: there is none of the user; its last one is what the policy works on")
    head, _, tail = generation.template.partition("{document}")
    alone = generation.chat or "Human:" in head  # the template itself says whose the words are
    if (alone and len(messages) == 1) or not (generation.chat or "Assistant:" in tail):
        return spoken[-1]
    try:
        document, answer = transcripts.from_messages([message.model_dump(exclude={"name"}) for message in messages])
    except ValueError as error:
        raise Refused(400, f"messages: {error}") from None
    if answer is not None:
        raise Refused(400, "messages: the last one is the assistant's; end with what it is to answer")
    return document
