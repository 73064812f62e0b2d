"""`clp serve`: one policy behind an OpenAI-compatible interface, each request at its own trade-off."""

import errno
import ipaddress
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from clp_lightning.errors import ClpError, UsageError

TOKEN = "CLP_SERVE_TOKEN"


def serve(
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    host: Annotated[
        str, typer.Option(help=f"Address to listen on; beyond loopback, {TOKEN} must be set.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    rows: Annotated[int, typer.Option(min=1, help="Answers written together.")] = 64,
    waiting: Annotated[int, typer.Option(min=1, help="Answers that may wait; more are told to come back.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time for one request.")] = 120.0,
    dtype: Annotated[
        str,
        typer.Option(
            help="Precision: auto (float32 on a CPU), float32, bfloat16, float16; float32 answers alike in any company."
        ),
    ] = "auto",
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of pages that may use it from a browser, e.g. https://my.site; * is any; repeatable."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Further name by which it is asked; with one, or on loopback, others are refused; repeatable."
        ),
    ] = None,
) -> None:
    """Serve a policy: /v1/completions and /v1/chat/completions with `weighting` in the body, /v1/models, /health, /metrics.

    Example: clp serve --model models/clp-full --port 8000
    """
    token = os.environ.get(TOKEN) or None
    if not _loopback(host) and token is None:
        raise UsageError(
            f"--host {host}: others could reach it; set {TOKEN} to a secret that they must send, or use 127.0.0.1"
        )
    origins, hosts = [_origin(each) for each in allow_origin or []], _hosts(host, allow_host or [])
    from clp_lightning.promotion import champion

    folder = champion.resolve(model)
    sockets = listening(host, port)  # a model takes long to load, only to be told that the port is taken

    import uvicorn

    from clp_lightning.policy.loading import answering_dtype
    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.serving.answers import Service
    from clp_lightning.serving.bodies import Limits
    from clp_lightning.serving.engine import Engine
    from clp_lightning.serving.server import application

    policy = SteerablePolicy.from_pretrained(folder, dtype=answering_dtype(dtype))
    with Engine(policy, rows=rows, waiting=waiting) as engine:
        service = Service(engine, folder.name, Limits(seconds=seconds))
        app = application(service, token, origins=origins, hosts=hosts)
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=int(seconds), server_header=False,
        )  # fmt: skip
        print(f"clp serve: {folder.name} ({', '.join(policy.objectives)}) on http://{host}:{port}", file=sys.stderr)
        # uvicorn finishes what it has begun, and then sends itself the signal that ended it once more
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            uvicorn.Server(config).run(sockets)
        # another took the port in the meantime, which a socket that does not listen yet allows
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _taken(host, port, error) from error


def listening(host: str, port: int) -> list[socket.socket]:
    """Return sockets that hold a port at each address of a host, and do not listen yet: who asks early is refused.

    Raises `ClpError` for an address that is taken, is not this machine's or is not known.
    """
    held: list[socket.socket] = []
    failed: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ClpError(
            f"--host {host}: {error.strerror}; name an address of this machine, such as 127.0.0.1"
        ) from error
    for family, kind, protocol, _, address in found:
        try:
            each = socket.socket(family, kind, protocol)
        except OSError as error:  # a machine without IPv6
            failed = error
            continue
        held.append(each)
        try:
            # a server that has ended leaves its port in TIME_WAIT
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(address)
        except OSError as error:
            held.pop().close()
            failed = error
            if error.errno == errno.EADDRINUSE:
                break
    if not held or (failed is not None and failed.errno == errno.EADDRINUSE):
        for each in held:
            each.close()
        raise _taken(host, port, failed) from failed
    return held


def _taken(host: str, port: int, error: OSError | None) -> ClpError:
    why = "" if error is None or error.errno is None else f" ({os.strerror(error.errno)})"
    return ClpError(f"cannot listen on {host}:{port}{why}; choose another --port")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(origin: str) -> str:
    """Return an origin as browsers send it; raises `UsageError` for anything else, which would match none."""
    try:
        parts = urlsplit(origin)
        plain = f"{parts.scheme}://{parts.netloc}"
        if origin == "*" or (
            parts.scheme and parts.hostname and origin.removesuffix("/") == plain and "@" not in plain
        ):
            parts.port  # noqa: B018 (raises for what is no port)
            return origin if origin == "*" else plain.lower()
    except ValueError:
        pass
    raise UsageError(f"--allow-origin {origin}: expected scheme and host, e.g. https://my.site:8080, or * for any page")


def _hosts(host: str, allowed: list[str]) -> frozenset[str]:
    """Return the names by which the server may be asked, none for any; raises `UsageError` for what is no name.

    On loopback a page of another site could otherwise lead its own name here, and read what is answered (DNS rebinding).
    """
    for name in allowed:
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:.]+\]", name):
            raise UsageError(
                f"--allow-host {name}: expected a name or an address without scheme and port, e.g. my.site"
            )
    if not (allowed or _loopback(host)):
        return frozenset()
    return frozenset(name.strip("[]").lower() for name in ("localhost", "127.0.0.1", "::1", host, *allowed))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(serve)
