"""Rewards of your own: any function of prompts and answers; params.yaml names it as `rewards:on_topic`."""

import re
from collections.abc import Sequence

STOP = frozenset(
    "a an and are can do does for how i in is it my of on or the to what when where which why with you your".split()
)


def on_topic(documents: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return for each answer which share of the question's words it takes up, 0 to 1."""
    return [_share(words(document), words(response)) for document, response in zip(documents, responses, strict=True)]


def words(text: str) -> set[str]:
    """Return the words of a text that say what it is about."""
    return set(re.findall(r"\w+", text.lower())) - STOP


def _share(asked: set[str], answered: set[str]) -> float:
    return len(asked & answered) / len(asked) if asked else 0.0
