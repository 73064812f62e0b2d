"""The OpenAI-compatible HTTP interface of `clp serve`: completions and chat, each request with its own trade-off."""

import hmac
import re
import time
from typing import Any, Literal

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from clp_lightning.errors import UsageError
from clp_lightning.serving import engine as serving
from clp_lightning.serving.answers import CHAT, COMPLETIONS, Refused, Service, asked
from clp_lightning.serving.bodies import (
    Card,
    Cards,
    Chat,
    Chatted,
    Completed,
    Completion,
    Failure,
    Health,
    Problem,
    Steered,
    answer,
    failures,
)

PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
LONGEST_MESSAGE = 1000  # characters; a reason may quote what was sent


def application(service: Service, token: str | None) -> FastAPI:
    """Return the HTTP application; with `token` every path but /health asks for it."""
    guarded = [Security(HTTPBearer(auto_error=False))] if token else []  # says so in /openapi.json; `Guard` asks
    app = FastAPI(title="CLP Lightning", description=__doc__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, service=service, token=token)
    _explain(app)

    def card() -> Card:
        policy, generation = service.engine.policy, service.engine.policy.generation
        return Card(
            id=service.name,
            objectives=list(policy.objectives),
            takes_alpha=policy.takes_alpha,
            max_tokens=generation.max_new_tokens,
            max_prompt_tokens=generation.max_prompt_tokens,
        )

    @app.get("/health")
    async def health() -> Health:
        return Health(running=service.engine.running, waiting=service.engine.queued)

    @app.get("/metrics", response_class=PlainTextResponse, responses=failures(401), dependencies=guarded)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(service.registry).decode())

    @app.get("/v1/models", responses=failures(401), dependencies=guarded)
    async def models() -> Cards:
        return Cards(data=[card()])

    @app.get("/v1/models/{name:path}", responses=failures(401, 404), dependencies=guarded)
    async def model(name: str) -> Card:
        if name != service.name:
            raise Refused(404, f"model {name!r} is not served here; use {service.name!r}", "model_not_found")
        return card()

    @app.post("/v1/completions", responses=answer(Completed), dependencies=guarded)
    async def completions(body: Completion, request: Request) -> Response:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        answers = service.submit(prompts, body, body.max_tokens)
        return await service.respond(answers, COMPLETIONS, request, stream=body.stream, usage=_usage(body))

    @app.post("/v1/chat/completions", responses=answer(Chatted), dependencies=guarded)
    async def chat(body: Chat, request: Request) -> Response:
        document = asked(service.engine.policy.generation, body.messages)
        answers = service.submit([document], body, body.max_completion_tokens or body.max_tokens)
        return await service.respond(answers, CHAT, request, stream=body.stream, usage=_usage(body))

    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # FastAPI's own: such a body gets 400 here
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return app


class Guard:
    """Refuses strangers and bodies that are too large before anything is read, and counts what is answered."""

    def __init__(self, app: ASGIApp, service: Service, token: str | None) -> None:
        self.app, self.service = app, service
        self.secret = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noted(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            await send(event)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.service.requests.labels(path, str(status)).inc()
            if path.endswith("completions"):
                self.service.seconds.observe(time.monotonic() - started)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, most = Headers(scope=scope), self.service.limits.body
        given = headers.get("authorization", "").encode()
        if self.secret and scope["path"] != "/health" and not hmac.compare_digest(given, self.secret):
            return _error(401, "give the server's token: Authorization: Bearer TOKEN", "invalid_api_key")
        length = headers.get("content-length", "0" if scope["method"] == "GET" else "")
        if scope["method"] == "POST" and not length.isdecimal():
            return _error(411, "give the length of the body: Content-Length")
        if length.isdecimal() and (len(length) > 12 or int(length) > most):
            return _error(413, f"the body has {length[:20]} bytes, at most {most} are read")
        return None


def _explain(app: FastAPI) -> None:
    """Answer every error with its status and a sentence in OpenAI's shape."""

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
        first: dict[str, Any] = error.errors()[0]
        # pydantic names the branches of a union too: no key of the body has such a name
        parts = [str(part) for part in first["loc"] if part != "body" and not re.search(r"[\[-]", str(part))]
        where = ".".join(parts) or "body"
        return _error(400, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        response = _error(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})  # e.g. which methods a path allows
        return response


def _usage(body: Steered) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    kind: Literal["server_error", "invalid_request_error"] = (
        "server_error" if status >= 500 else "invalid_request_error"
    )
    # JSON may hold halves of characters, UTF-8 may not
    message = message.encode("utf-8", "replace").decode()
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + " ..."
    return JSONResponse(Failure(error=Problem(message=message, type=kind, code=code)).model_dump(), status_code=status)
