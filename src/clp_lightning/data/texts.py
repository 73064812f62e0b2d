"""What a text, a number and a prompt's template are, for every way in: columns, messages, preference pairs."""

import math
import re
from typing import Any

from clp_lightning.errors import UsageError

_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def missing(value: Any) -> bool:
    """Whether a value says that there is nothing: None, not a number, an empty text or one of spaces only."""
    if isinstance(value, float):
        return not math.isfinite(value)  # what pandas writes for a cell that is empty
    return value is None or (isinstance(value, str) and not value.strip())


def text(value: Any, what: str) -> str:
    """Return a value as text, without the space around it; numbers as they are written, where that is known.

    Raises `ValueError` with `what` for what is missing, for what is no text, and for half a character, which no tokenizer reads.
    """
    if missing(value):
        raise ValueError(f"{what} is empty")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{what} holds half a character (a lone surrogate)")
    return value.strip()


def number(value: Any, what: str) -> float:
    """Return a value as a number, which may be written as text; raises `ValueError` with `what` for what is none or missing."""
    if missing(value):
        raise ValueError(f"{what} is empty")
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{what} is no number")
    return found


def columns_of(prompt: str, key: str = "data.prompt") -> list[str]:
    """Return the columns that a prompt names, by any name without braces; raises `UsageError` for a template that is none."""
    if "{" not in prompt and "}" not in prompt:
        return [prompt]
    names = []
    for part in _TEMPLATE.finditer(prompt):
        if len(part[0]) == 1:
            raise UsageError(
                f"{key}: not a template (a single {part[0]} at character {part.start() + 1}); write columns as {{column}}, "
                "braces as {{ and }}"
            )
        if part[1] is not None:
            names.append(part[1])
    if not names or "" in names:
        raise UsageError(f"{key}: {prompt!r} must name columns, as {{column}}; braces as {{{{ and }}}}")
    return names


def filled(prompt: str, values: dict[str, str]) -> str:
    """Return a prompt with its columns' values; not by `str.format`, which takes a name apart at its dots and colons."""
    if "{" not in prompt:
        return values[prompt]
    return _TEMPLATE.sub(lambda part: part[0][0] if part[1] is None else values[part[1]], prompt)
