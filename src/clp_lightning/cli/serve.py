"""`clp serve`: one policy behind an OpenAI-compatible interface, each request at its own trade-off."""

import ipaddress
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

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
) -> None:
    """Serve a policy: /v1/completions and /v1/chat/completions with `weighting` in the body, /v1/models, /health, /metrics.

    Example: clp serve --model models/clp-full --port 8000
    """
    token = os.environ.get(TOKEN) or None
    if not _loopback(host) and token is None:
        raise UsageError(
            f"--host {host}: others could reach it; set {TOKEN} to a secret that they must send, or use 127.0.0.1"
        )
    from clp_lightning.promotion import champion

    folder = champion.resolve(model)

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
        config = uvicorn.Config(
            application(service, token), host=host, port=port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=int(seconds), server_header=False,
        )  # fmt: skip
        print(f"clp serve: {folder.name} ({', '.join(policy.objectives)}) on http://{host}:{port}", file=sys.stderr)
        # uvicorn finishes what it has begun, and then sends itself the signal that ended it once more
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            uvicorn.Server(config).run()
        except SystemExit as error:  # uvicorn's way to say that the address is taken; it has logged why
            raise ClpError(f"cannot listen on {host}:{port}; choose another --port") from error


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(serve)
