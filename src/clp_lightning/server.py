"""The OpenAI-compatible HTTP interface of `clp serve`: completions and chat, each request with its own trade-off."""

import asyncio
import contextlib
import functools
import hmac
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from clp_lightning import serving, weightings
from clp_lightning.errors import UsageError

Text = Annotated[str, Field(min_length=1)]


class Limits(NamedTuple):
    """What one request may ask for: bytes of its body, prompts in it, seconds until its answer must be complete."""

    body: int = 1_000_000
    prompts: int = 32
    seconds: float = 120.0


class Steered(BaseModel):
    """What both kinds of request have in common; unknown keys are refused, since ignoring one would change the answer."""

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
    n: Literal[1] = 1
    user: str | None = None


class Completion(Steered):
    """Body of /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "developer"]
    content: Text


class Chat(Steered):
    """Body of /v1/chat/completions; `max_completion_tokens` is OpenAI's newer name of `max_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None


class Refused(Exception):
    """A request that cannot be answered, as an HTTP status and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Service:
    """Turns bodies into the engine's requests and their tokens into answers."""

    def __init__(self, engine: serving.Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.objectives = engine.policy.objectives
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
        example = ", ".join(f'"{name}": {1 / len(self.objectives):.2g}' for name in self.objectives)
        if body.weighting is None:
            raise Refused(400, f'weighting: give shares of the objectives, e.g. {{{example}}}, or "reference"')
        if body.weighting == "reference":
            return None
        assert isinstance(body.weighting, dict)
        return weightings.to_array(body.weighting, self.objectives)

    def submit(self, prompts: list[str], body: Steered, most: int | None) -> "Answers":
        """Queue one answer per prompt; raises `Refused` for what cannot be steered or when too many wait."""
        if len(prompts) > self.limits.prompts:
            raise Refused(400, f"prompt: {len(prompts)} texts, at most {self.limits.prompts} in one request")
        weighting, stop = self.weighting(body), [body.stop] if isinstance(body.stop, str) else body.stop or []
        answers = Answers(asyncio.get_running_loop(), len(prompts))
        for position, prompt in enumerate(prompts):
            if not prompt.strip():
                raise Refused(400, f"prompt {position + 1} is empty; give some text to work on")
            answers.requests.append(serving.request(
                self.engine.policy, prompt, weighting, functools.partial(answers.deliver, position), alpha=body.alpha,
                temperature=body.temperature, seed=body.seed, max_tokens=most, stop=stop,
            ))  # fmt: skip
        self.engine.submit(answers.requests)
        return answers

    def account(self, answers: "Answers") -> dict[str, int]:
        """Count the tokens of finished answers and return OpenAI's `usage`."""
        prompt, completion = answers.used()
        self.tokens.labels("prompt").inc(prompt)
        self.tokens.labels("completion").inc(completion)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Answers:
    """The answers to one HTTP request, filled from the engine's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.loop, self.count = loop, count
        self.requests: list[serving.Request] = []
        self.changes: asyncio.Queue[tuple[int, str, str | None]] = asyncio.Queue()

    def deliver(self, position: int, request: serving.Request) -> None:
        """Pass on an answer's text so far; called from the engine's thread."""
        change = position, request.text, request.finish
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.changes.put_nowait, change)

    async def follow(self, seconds: float) -> AsyncIterator[tuple[int, str, str | None]]:
        """Yield position, text and reason of ending after each token, until all have ended; cancels them when left."""
        left, until = self.count, self.loop.time() + seconds
        try:
            while left:
                async with asyncio.timeout_at(until):
                    change = await self.changes.get()
                if change[2] == "error":
                    raise Refused(500, f"the answer failed: {change[1]}")
                left -= change[2] is not None
                yield change
        except TimeoutError:
            raise Refused(408, f"the answer took longer than {seconds:g} s; ask for fewer tokens") from None
        finally:
            for each in self.requests:
                each.cancelled = True

    def used(self) -> tuple[int, int]:
        """Return the numbers of prompt and answer tokens."""
        return sum(each.prompt_tokens for each in self.requests), sum(len(each.tokens) for each in self.requests)


def application(service: Service, token: str | None) -> FastAPI:
    """Return the HTTP application; with `token` every path but /health asks for it."""
    app = FastAPI(title="CLP Lightning", description=__doc__, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.monotonic()
        response = await _checked(request, call_next, service, token)
        path = request.url.path if request.url.path in PATHS else "other"
        service.requests.labels(path, str(response.status_code)).inc()
        if request.url.path.endswith("completions"):
            service.seconds.observe(time.monotonic() - started)
        return response

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _error(error.status, error.message, error.code)

    @app.exception_handler(UsageError)
    async def misused(_: Request, error: UsageError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(serving.BusyError)
    async def busy(_: Request, error: serving.BusyError) -> JSONResponse:
        return _error(429, str(error), "busy")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # pydantic names the branches of a union too: no key of the body has such a name
        parts = [str(part) for part in first["loc"] if part != "body" and not re.search(r"[\[-]", str(part))]
        where = ".".join(parts) or "body"
        return _error(400, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": service.engine.running, "waiting": service.engine.queued}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(service.registry).decode())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        policy = service.engine.policy
        card = {
            "id": service.name, "object": "model", "owned_by": "clp", "created": 0, "objectives": list(policy.objectives),
            "takes_alpha": policy.takes_alpha, "max_tokens": policy.generation.max_new_tokens,
        }  # fmt: skip
        return {"object": "list", "data": [card]}

    @app.post("/v1/completions")
    async def completions(body: Completion) -> Response:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return await _respond(service, service.submit(prompts, body, body.max_tokens), body.stream, COMPLETIONS)

    @app.post("/v1/chat/completions")
    async def chat(body: Chat) -> Response:
        spoken = [message.content for message in body.messages if message.role == "user"]
        if not spoken:
            raise Refused(400, "messages: there is none of the user; its last one is what the policy works on")
        answers = service.submit(spoken[-1:], body, body.max_completion_tokens or body.max_tokens)
        return await _respond(service, answers, body.stream, CHAT)

    return app


PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Shape(NamedTuple):
    """How OpenAI writes one kind of answer: names of whole and streamed objects, and a choice of either."""

    prefix: str
    whole: str
    streamed: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]


COMPLETIONS = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}
)
CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text}},
    lambda text: {"delta": {"role": "assistant", "content": text}},
)  # fmt: skip


async def _respond(service: Service, answers: Answers, stream: bool, shape: Shape) -> Response:
    head = {"id": f"{shape.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
    if stream:
        return StreamingResponse(_events(service, answers, head, shape), media_type="text/event-stream")
    ended: dict[int, tuple[str, str | None]] = {}
    async for position, text, finish in answers.follow(service.limits.seconds):
        ended[position] = text, finish
    choices = [
        {"index": position, **shape.choice(text), "finish_reason": finish, "logprobs": None}
        for position, (text, finish) in sorted(ended.items())
    ]
    return JSONResponse({**head, "object": shape.whole, "choices": choices, "usage": service.account(answers)})


async def _events(service: Service, answers: Answers, head: dict[str, Any], shape: Shape) -> AsyncIterator[str]:
    """Yield server-sent events: what each token added to its answer's text, at last the reason of ending."""
    sent = [""] * answers.count
    try:
        async for position, text, finish in answers.follow(service.limits.seconds):
            # the last character may be half of one; what follows a full text only grows
            ready = text if finish else text.rstrip("�")
            new = ready[len(sent[position]) :] if ready.startswith(sent[position]) else ""
            if new or finish:
                sent[position] += new
                choice = {"index": position, **shape.delta(new), "finish_reason": finish, "logprobs": None}
                yield f"data: {json.dumps({**head, 'object': shape.streamed, 'choices': [choice]})}\n\n"
        service.account(answers)
    except Refused as error:  # the status has been sent already
        yield f"data: {json.dumps({'error': {'message': error.message, 'code': error.code}})}\n\n"
    yield "data: [DONE]\n\n"


async def _checked(
    request: Request, call_next: Callable[[Request], Awaitable[Response]], service: Service, token: str | None
) -> Response:
    """Refuse strangers and bodies that are too large before anything is read."""
    given = request.headers.get("authorization", "")
    if token and request.url.path != "/health" and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return _error(401, "give the server's token: Authorization: Bearer TOKEN", "invalid_api_key")
    length = request.headers.get("content-length", "0" if request.method == "GET" else "")
    if request.method == "POST" and not length.isdecimal():
        return _error(411, "give the length of the body: Content-Length")
    if length.isdecimal() and int(length) > service.limits.body:
        return _error(413, f"the body has {length} bytes, at most {service.limits.body} are read")
    return await call_next(request)


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message = message.encode("utf-8", "replace").decode()  # JSON may hold halves of characters, UTF-8 may not
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)
