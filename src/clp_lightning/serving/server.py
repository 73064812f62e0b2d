"""The OpenAI-compatible HTTP interface of `clp serve`: completions and chat, each request with its own trade-off."""

import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import generate_latest
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from clp_lightning.serving.answers import CUT, Service, asked
from clp_lightning.serving.bodies import Card, Cards, Chat, Completion, Health, Steered
from clp_lightning.serving.refusals import Refused, explain, failures, refusal
from clp_lightning.serving.replies import CHAT, COMPLETIONS, Chatted, Completed, answer

PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


def application(
    service: Service, token: str | None, *, origins: Collection[str] = (), hosts: Collection[str] = ()
) -> FastAPI:
    """Return the HTTP application; with `token` every path but /health asks for it.

    Pages of `origins` ("*": any) may use it from a browser. With `hosts` a request must be to one of these names.
    """
    guarded = [Security(HTTPBearer(auto_error=False))] if token else []  # says so in /openapi.json; `Guard` asks
    app = FastAPI(title="CLP Lightning", description=__doc__, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, service=service, token=token, hosts=hosts)
    if origins:  # the last one added comes first: a browser asks without the token whether it may ask
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"],
            expose_headers=[CUT], allow_private_network=True,
        )  # fmt: skip
    explain(app)

    def card() -> Card:
        policy, generation = service.engine.policy, service.engine.policy.generation
        return Card(
            id=service.name,
            objectives=list(policy.objectives),
            takes_alpha=policy.takes_alpha,
            max_tokens=generation.max_new_tokens,
            max_prompt_tokens=generation.max_prompt_tokens,
        )

    @app.get("/health", responses=failures(503))
    async def health() -> Health:
        service.check_alive()
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
        answers = service.submit(service.texts(body.prompt), body, body.max_tokens)
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

    def __init__(self, app: ASGIApp, service: Service, token: str | None, hosts: Collection[str] = ()) -> None:
        self.app, self.service, self.hosts = app, service, hosts
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
        if self.hosts and _name(headers.get("host", "")) not in self.hosts:
            return refusal(
                400, "Host: this server is not asked by this name; `clp serve --allow-host NAME` allows another"
            )
        given = headers.get("authorization", "").encode()
        if self.secret and scope["path"] != "/health" and not hmac.compare_digest(given, self.secret):
            return refusal(401, "give the server's token: Authorization: Bearer TOKEN", "invalid_api_key")
        length = headers.get("content-length", "0" if scope["method"] == "GET" else "")
        if scope["method"] == "POST" and not length.isdecimal():
            return refusal(411, "give the length of the body: Content-Length")
        if length.isdecimal() and (len(length) > 12 or int(length) > most):
            return refusal(413, f"the body has {length[:20]} bytes, at most {most} are read")
        return None


def _name(host: str) -> str:
    """Return the name in a Host header, without its port; a page of another site that is led here still sends its own."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _usage(body: Steered) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
