"""The reference of the command `clp`, read from typer."""

from collections.abc import Iterator
from typing import Any

import typer


def page(app: typer.Typer, name: str) -> str:
    """Return the page for an application and all commands below it."""
    command: Any = typer.main.get_command(app)  # of click, or of the copy that newer typers bring along
    lines = ["# Commands", *_command(command, name, 1)]
    return "\n\n".join(lines) + "\n"


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    if level > 1:
        yield f"{'#' * level} {name} {{ #{name.replace(' ', '-')} }}"
    about, _, example = (command.help or "").partition("\n\nExample: ")
    yield about
    if example:
        yield f"```\n{example.strip()}\n```"
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [_row(parameter, context) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield "\n".join(["| argument or option | meaning | default, range |", "|---|---|---|", *rows])
    for below in getattr(command, "commands", {}).values():
        yield from _command(below, f"{name} {below.name}", level + 1)


def _row(parameter: Any, context: Any) -> str:
    usage, text = parameter.get_help_record(context)
    meaning = parameter.help or ""
    limits = text[len(meaning) :].strip().removeprefix("[").removesuffix("]") if text.startswith(meaning) else ""
    cells = (f"`{usage}`", meaning, limits.replace("default: ", "").replace(";", ","))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
