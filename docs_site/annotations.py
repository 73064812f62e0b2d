"""Types of pydantic models in words, and which models lie below a field."""

import enum
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLAIN = {
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "`null`",
    Any: "anything",
}


class Nested(NamedTuple):
    """Models below a field, the key that chooses among several, and the steps to them (`.NAME`, `[]`)."""

    models: tuple[type[BaseModel], ...]
    tag: str
    steps: tuple[str, ...]
    about: str

    def kinds(self, model: type[BaseModel]) -> list[str]:
        """Return the values of the tag that choose a model; its name where no key does."""
        return (
            [str(kind) for kind in get_args(model.model_fields[self.tag].annotation)] if self.tag else [model.__name__]
        )


def nested(field: FieldInfo) -> Nested | None:
    """Return the models below a field, or None for a value."""
    found = _nested(field.annotation, field.metadata)
    if found is None or found.tag or not isinstance(field.discriminator, str):
        return found
    return found._replace(tag=field.discriminator)


def of_field(field: FieldInfo) -> str:
    """Return in words what a field accepts."""
    words = in_words(field.annotation, field.metadata)
    if field.is_required():
        return words
    return f"{words}; if left out {literal(field.get_default(call_default_factory=True))}"


def in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return in words which values an annotation accepts, as Markdown."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(arguments[0], [*_flat(arguments[1:]), *metadata])
    if origin is Literal:
        return one_of([literal(choice) for choice in arguments])
    if origin in (Union, types.UnionType):
        words = [in_words(argument) for argument in sorted(arguments, key=lambda each: each is type(None))]
        return "; or ".join(words) if any(", " in each for each in words) else one_of(words)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return one_of([literal(choice.value) for choice in annotation])
    limits = _limits(metadata, "entries" if origin else "characters")
    if origin and issubclass(origin, Mapping):
        return f"mapping of {in_words(arguments[0])} to {in_words(arguments[1])}{limits}"
    if origin and issubclass(origin, Sequence | set | frozenset):
        return f"list of {in_words(arguments[0])}{limits}"
    return PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)).lower()) + limits


def one_of(choices: list[str]) -> str:
    """Join choices as a sentence does."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def literal(value: Any) -> str:
    """Return a value as params.yaml has it, in code style."""
    plain = isinstance(value, str) and value and value.isprintable() and "`" not in value
    return f"`{value if plain else json.dumps(value, default=str, ensure_ascii=False)}`"


def _nested(annotation: Any, metadata: Iterable[Any]) -> Nested | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = _nested(arguments[0], _flat(arguments[1:]))
        tags = [each.discriminator for each in arguments[1:] if isinstance(each, FieldInfo) and each.discriminator]
        return found._replace(tag=str(tags[0])) if found and tags and not found.tag else found
    if origin in (Union, types.UnionType):
        parts = [part for argument in arguments if (part := _nested(argument, ()))]
        if not parts:
            return None
        others = [in_words(argument) for argument in arguments if _nested(argument, ()) is None]
        about = " ".join([parts[0].about, f"Or {one_of(others)}." if others else ""]).strip()
        return parts[0]._replace(models=tuple(model for part in parts for model in part.models), about=about)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Nested((annotation,), "", (), "")
    if not isinstance(origin, type) or not issubclass(origin, Mapping | Sequence) or not arguments:
        return None
    found = _nested(arguments[-1], ())
    if found is None:
        return None
    limits = _limits(metadata, "entries")
    if issubclass(origin, Mapping):
        about = f"One for each NAME of your choice ({in_words(arguments[0])}){limits}."
        return found._replace(steps=(".NAME", *found.steps), about=f"{about} {found.about}".strip())
    return found._replace(steps=("[]", *found.steps), about=f"A list{limits}. {found.about}".strip())


def _flat(metadata: Iterable[Any]) -> list[Any]:
    """Unpack `Field(...)`, which keeps its limits in a list of its own."""
    return [each for one in metadata for each in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _limits(metadata: Iterable[Any], counted: str) -> str:
    limits = {name: value for each in _flat(metadata) for name, value in _stated(each)}
    match limits:
        case {"ge": low, "le": high}:
            words = [f"from {low} to {high}"]
        case {"gt": low, "lt": high}:
            words = [f"between {low} and {high}, neither of them"]
        case _:
            names = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
            words = [" and ".join(f"{name} {limits[limit]}" for limit, name in names.items() if limit in limits)]
    if "min_length" in limits:
        words.append(f"{limits['min_length']} or more {counted}" if limits["min_length"] > 1 else "not empty")
    if "max_length" in limits:
        words.append(f"{limits['max_length']} or fewer {counted}")
    if "multiple_of" in limits:
        words.append(f"a multiple of {limits['multiple_of']}")
    if "pattern" in limits:
        words.append(f"matching `{limits['pattern']}`")
    return "".join(f", {each}" for each in words if each)


def _stated(limit: Any) -> list[tuple[str, Any]]:
    """Return the limits that a piece of metadata states, by name."""
    names = ("ge", "gt", "le", "lt", "min_length", "max_length", "multiple_of", "pattern")
    return [(name, value) for name in names if (value := getattr(limit, name, None)) is not None]
