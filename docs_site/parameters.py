"""The reference of `params.yaml`, read from its typed configuration: no key is listed by hand.

Ranges and choices are those of the pydantic models, explanations their docstrings and the comments beside their fields.
"""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap

from docs_site import annotations
from docs_site.comments import comments, first_line

HEAD = "| key | default run | value, meaning |\n|---|---|---|"


class Given(NamedTuple):
    """What the default run has at a path: the mapping, and the name that tells it from its like."""

    name: str
    values: Any


def page(root: type[BaseModel], values: CommentedMap) -> str:
    """Return the page for a configuration and the default run's values."""
    about = inspect.getdoc(inspect.getmodule(root)) or ""
    lines = ["# Parameters", about, *_section(root, "", "", [Given("", values)], 1)]
    return "\n\n".join(lines) + "\n"


def _section(
    model: type[BaseModel], path: str, anchor: str, given: list[Given], level: int, *, tag: str = ""
) -> Iterator[str]:
    """Yield the table of a model's own keys, then the sections below it; `tag` is the key that chose the model."""
    explained, rows, below = comments(model), [], []
    for name, field in model.model_fields.items():
        key, place = _join(path, field.alias or name), _join(anchor, field.alias or name)
        nested = annotations.nested(field)
        if nested is not None:
            stated = [Given(one.name, one.values[name]) for one in given if name in one.values]
            below.append((nested, key, place, stated, explained[name]))
        elif name != tag:
            rows.append(_row(key, place, annotations.of_field(field), name, given, explained[name]))
    if rows:
        yield "\n".join([HEAD, *rows])
    for nested, key, place, values, comment in below:
        yield from _nested(nested, key, place, values, level + 1, comment)


def _nested(
    nested: annotations.Nested, path: str, anchor: str, given: list[Given], level: int, comment: str
) -> Iterator[str]:
    """Yield a section with its heading: one model, or one of several kinds, perhaps once per name or entry."""
    plain = [annotations.literal(one.values) for one in given if not isinstance(one.values, dict | list)]
    given = [one for one in given if isinstance(one.values, dict | list)]
    for step in nested.steps:
        path, anchor = path + step, anchor + step.replace("[]", ".N")
        given = [each for one in given for each in _each(one)]
    yield f"{'#' * min(level, 6)} `{path}` {{ #{anchor} }}"
    default = f"The default run has {', '.join(plain)}." if plain else ""
    if about := " ".join(each for each in (nested.about, default, _sentence(comment)) if each):
        yield about
    if len(nested.models) == 1:
        yield from _model(nested.models[0], path, anchor, given, level)
        return
    if nested.tag:
        choices = annotations.one_of([f"`{kind}`" for model in nested.models for kind in nested.kinds(model)])
        yield f"{HEAD}\n" + _row(
            f"{path}.{nested.tag}", f"{anchor}.{nested.tag}", choices, nested.tag, given, "which of those below"
        )
    for model in nested.models:
        kinds = nested.kinds(model)
        place = _join(anchor, "-".join(kinds))
        yield f"{'#' * min(level + 1, 6)} {nested.tag} `{'`, `'.join(kinds)}` {{ #{place} }}"
        own = [one for one in given if not nested.tag or one.values.get(nested.tag) in kinds]
        yield from _model(model, path, place, own, level + 1, tag=nested.tag)


def _model(
    model: type[BaseModel], path: str, anchor: str, given: list[Given], level: int, *, tag: str = ""
) -> Iterator[str]:
    yield inspect.cleandoc(model.__doc__ or "")
    yield from _section(model, path, anchor, given, level, tag=tag)


def _row(path: str, anchor: str, value: str, key: str, given: list[Given], meaning: str) -> str:
    found: dict[str, list[str]] = {}
    remarks = []
    for one in given:
        if key in one.values:
            found.setdefault(annotations.literal(one.values[key]), []).append(one.name)
            remarks.append(first_line(one.values, key))
    meaning += "".join(f"{'. ' if meaning else ''}Default run: {remark}" for remark in remarks[:1] if remark)
    # several of them are told apart by name, unless all have the same value
    default = ", ".join(
        shown if not names[0] or (len(found) == 1 and len(names) > 1) else f"{shown} ({', '.join(names)})"
        for shown, names in found.items()
    )
    name = path.replace(".", ".<wbr>")  # where a narrow screen may break it
    cells = (f'<code id="{anchor}">{name}</code>', default or "–", f"{value}{'<br>' if meaning else ''}{meaning}")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _each(one: Given) -> list[Given]:
    """Return the entries of a mapping of names or of a list, by name."""
    named = one.values.items() if isinstance(one.values, dict) else ((str(n), v) for n, v in enumerate(one.values))
    return [Given(_join(one.name, name), value) for name, value in named if isinstance(value, dict | list)]


def _sentence(comment: str) -> str:
    return f"{comment[0].upper()}{comment[1:]}." if comment else ""


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
