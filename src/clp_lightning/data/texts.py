"""What a text is, and what a number, for every way in: columns, messages, preference pairs."""

import math
from typing import Any


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
