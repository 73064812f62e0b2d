"""What the sections of `params.yaml` are built from: frozen mappings, the ranges of their values, and what is wrong with one.

pydantic's and YAML's complaints become one line that names the key and what to do.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml.error import YAMLError

NAME = r"^[a-z][a-z0-9_+-]*$"  # the pattern of objectives and methods, which has an explanation of its own
Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _function(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(f"must be module:function, as in scoring:politeness, but found {value!r}")
    return value


FunctionName = Annotated[str, AfterValidator(_function)]  # of the project, or of an installed module


class Section(BaseModel):
    """A frozen mapping of `params.yaml`; keys it does not know are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# Keys of version 0.1's first parameter files, and what to write instead.
MOVED = {
    "corpus": "data (with kind: api_descriptions)",
    "pairs": "reward_models.NAME.pairs (with kind: corruptions)",
    "reward_model": "reward_models.NAME",
    "base.package": "base.model: package:PACKAGE/FILE (with kind: pretrained)",
    "base.file": "base.model: package:PACKAGE/FILE (with kind: pretrained)",
}


def yaml_problem(error: YAMLError) -> str:
    """Return what is wrong with the file as YAML, on one line with its line number."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    return " ".join(problem.split()) + (f" in line {mark.line + 1}" if mark else "")


def first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    """Return the first problem as `KEY.PATH: what is wrong, but found X (and N more)`."""
    # A misspelt key is both unknown and missing: naming the unknown one tells more.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first, more = problems[0], f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    where = _path(first["loc"], values)
    what = _explain(first["type"], first["msg"], first["input"], first.get("ctx", {}))
    if first["type"] == "extra_forbidden" and where in MOVED:
        what = f"a key of version 0.1; it is now {MOVED[where]}"
    return f"{where}: {what}{more}" if where else f"{what}{more}"


def _path(location: tuple[int | str, ...], values: Any) -> str:
    """Join pydantic's location as the file has it: without the kind that it inserts below a section with kinds."""
    parts = []
    for position, part in enumerate(location):
        known = isinstance(values, dict) and part in values
        kind = isinstance(values, dict) and values.get("kind") == part
        if known or (position == len(location) - 1 and part != "[key]" and isinstance(values, dict) and not kind):
            parts.append(str(part))
        values = values[part] if known else values
    return ".".join(parts)


def _explain(kind: str, message: str, found: Any, context: dict[str, Any]) -> str:
    match kind:
        case "extra_forbidden":
            return "unknown key; remove it or correct its spelling"
        case "missing":
            return "missing; every key of params.yaml must be stated"
        case "value_error":  # one of the model validators', which names its key itself
            return str(context["error"])
        case "union_tag_invalid":
            return f"expected a kind among {context['expected_tags']}, but found {context['tag']!r}"
        case "union_tag_not_found":
            return "kind: missing; state which kind it is"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"expected keys and values, but found {found!r}"
        case "string_pattern_mismatch" if context["pattern"] == NAME:
            return f"a name is of a-z, 0-9, _, + and -, a letter first, but found {found!r}"
        case "string_pattern_mismatch":
            return f"must contain {{document}}, but found {found!r}"
        case _:
            return f"{message[0].lower()}{message[1:]}, but found {found!r}"
