"""`clp doctor`: its table, and its exit code."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    params: Annotated[Path, typer.Option(help="Parameter file of the project.")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Examine machine and project, each finding with its remedy; exit code 1 if something hinders the pipeline.

    Example: clp doctor
    """
    from clp_lightning.project.doctor import examine

    findings = list(examine(params))
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        table = Table("", "", "found", "what to do", box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            state = Text(finding.state, style=STYLES[finding.state])
            table.add_row(finding.name, state, Text(finding.found), Text(finding.remedy))
        Console().print(table)
    sys.exit(any(finding.state == "problem" for finding in findings))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)
