"""`clp promote` and `clp rollback`: which policy is in use."""

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from clp_lightning.config import load_config


def promote(
    params: Annotated[Path, typer.Option(help="Parameter file of the project.")] = Path("params.yaml"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the decision as JSON; null if there is nothing new.")
    ] = False,
) -> None:
    """Make the newly trained policy the champion if it is better than the present one (`promotion` in params.yaml).

    Example: clp promote
    """
    from clp_lightning import promotion_stage

    row = promotion_stage.promote(load_config(params))
    if as_json:
        print(json.dumps(row, default=str))
    else:
        print("nothing new: the champion is this very policy" if row is None else promotion_stage.sentence(row))


def rollback() -> None:
    """Make the champion's predecessor the champion again.

    Example: clp rollback
    """
    from clp_lightning import champion

    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    entry = champion.rollback(now)
    print(f"the champion is {champion.KEPT / entry['id'] / entry['method']} again")


def register(app: typer.Typer) -> None:
    """Add the commands to `clp`."""
    app.command()(promote)
    app.command()(rollback)
