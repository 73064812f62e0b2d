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
        yield f"{'#' * level} {name} {{ #{_anchor(name)} }}"
    about, _, example = (command.help or "").partition("\n\nExample: ")
    yield about
    if example:
        yield f"```\n{example.strip()}\n```"
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [
        _row(parameter, context, _anchor(name))
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
    ]
    if rows:
        yield "\n".join(["| argument or option | meaning |", "|---|---|", *rows])
    for below in getattr(command, "commands", {}).values():
        yield from _command(below, f"{name} {below.name}", level + 1)


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _row(parameter: Any, context: Any, command: str) -> str:
    usage, text = parameter.get_help_record(
        context
    )  # "--seed <int range>", "Seed of the sampling.  [default: 0; x>=0]"
    name, _, kind = usage.partition(" <")
    meaning = parameter.help or ""
    limits = text.removeprefix(meaning).strip().removeprefix("[").removesuffix("]").replace(": ", " ").split("; ")
    value = ", ".join(each for each in (kind.removesuffix(">").removesuffix(" range"), *limits) if each)
    place = f"{command}.{parameter.name}"
    cells = (f"`{name}`{{ .option #{place} }}", f"{meaning}<br>`{value}`" if value else meaning)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
