"""Every refusal of `clp serve`: a status and a sentence that names the key, in OpenAI's shape."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from clp_lightning.errors import UsageError
from clp_lightning.serving import engine as serving

LONGEST_MESSAGE = 1000  # characters; a reason may quote what was sent
UNIONS = ("prompt", "stop", "weighting")  # keys with values of several kinds: pydantic names the kind behind the key
PYTHONS = re.compile("dictionary( or object to extract fields from)?")  # pydantic's words for it
KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a boolean"}
REASONS = {
    400: "The body says something that cannot be answered, the message names the key; or the Host is not this server's.",
    401: "The server's token is missing or wrong.",
    404: "Another model is served here.",
    408: "The answer took longer than the server waits.",
    411: "The body's length is missing.",
    413: "The body is too large.",
    429: "Too many answers wait, or the server is shutting down.",
    500: "The answer failed.",
    503: "What writes the answers has ended; the server must be started again.",
}


class Refused(Exception):
    """A request that cannot be answered, as an HTTP status and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Problem(BaseModel):
    """Why a request was refused, in a sentence."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None = None
    code: str | None = None


class Failure(BaseModel):
    """Body of every refusal, as OpenAI's clients read it."""

    error: Problem


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the refusals of these statuses as FastAPI declares them."""
    return {status: {"model": Failure, "description": REASONS[status]} for status in statuses}


def refusal(status: int, message: str, code: str | None = None) -> JSONResponse:
    """Return the answer to a request that is refused."""
    kind: Literal["server_error", "invalid_request_error"] = (
        "server_error" if status >= 500 else "invalid_request_error"
    )
    # JSON may hold halves of characters, UTF-8 may not
    message = message.encode("utf-8", "replace").decode()
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + " ..."
    return JSONResponse(Failure(error=Problem(message=message, type=kind, code=code)).model_dump(), status_code=status)


def explain(app: FastAPI) -> None:
    """Answer every error with its status and a sentence."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return refusal(error.status, error.message, error.code)

    @app.exception_handler(UsageError)
    async def misused(_: Request, error: UsageError) -> JSONResponse:
        return refusal(400, str(error))

    @app.exception_handler(serving.BusyError)
    async def busy(_: Request, error: serving.BusyError) -> JSONResponse:
        return refusal(429, str(error), "busy")

    @app.exception_handler(serving.DeadError)
    async def dead(_: Request, error: serving.DeadError) -> JSONResponse:
        return refusal(503, str(error), "dead")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(400, sentence(error.errors(), request.headers.get("content-type", "")))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        # FastAPI's 400 is for bytes that are no UTF-8, and for too many brackets
        told = "body: it cannot be read as JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        response = refusal(error.status_code, told)
        response.headers.update(error.headers or {})  # e.g. which methods a path allows
        return response


def sentence(errors: Sequence[dict[str, Any]], content_type: str) -> str:
    """Return what is wrong with a body, from FastAPI's errors and the request's Content-Type."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"body: it is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    if first["loc"] == ("body",) and first["type"] == "missing":
        return "body: it is empty; send a JSON object"
    if first["loc"] == ("body",) and first["type"] == "model_attributes_type":
        if "json" not in content_type.lower():
            return "body: send it with the header Content-Type: application/json"
        return f"body: expected a JSON object, but found {KINDS.get(type(first['input']), 'null')}"
    return _best([error for error in errors if error["loc"][:2] == first["loc"][:2]])


def _best(errors: Sequence[dict[str, Any]]) -> str:
    """Of the errors at one key, one for each kind that its value may have, tell that of the kind which was meant.

    That is the one with an error other than its kind, else the one in which most was right; of equals all.
    """

    def missed(error: dict[str, Any]) -> tuple[bool, int, list[int]]:
        kind = error["type"].endswith("_type") or error["type"] == "literal_error"
        return kind, -len(error["loc"]), [-part for part in error["loc"] if isinstance(part, int)]

    best = min(map(missed, errors))
    said = (error["msg"].removeprefix("Value error, ") for error in errors if missed(error) == best)
    told = list(dict.fromkeys(PYTHONS.sub("JSON object", message) for message in said))
    alike = "Input should be "
    if all(message.startswith(alike) for message in told):
        told = [told[0], *(message.removeprefix(alike) for message in told[1:])]
    where = min(errors, key=missed)["loc"][1:]
    where = where[:1] + where[2:] if where[:1] and where[0] in UNIONS else where
    return f"{'.'.join(map(str, where)) or 'body'}: {' or '.join(told)}"
