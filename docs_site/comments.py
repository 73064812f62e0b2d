"""Comments beside the fields of a class and beside the keys of a YAML mapping."""

import ast
import inspect
import io
import re
import textwrap
import tokenize

from pydantic import BaseModel
from ruamel.yaml.comments import CommentedMap

PRAGMA = re.compile(r"(type|fmt|noqa|pragma|ruff)\b")


def comments(model: type[BaseModel]) -> dict[str, str]:
    """Return what stands beside each field: on its lines, or on lines of their own directly above."""
    found = {name: field.description or "" for name, field in model.model_fields.items()}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found |= {name: text for name, text in _beside(each).items() if text and name in found}
    return found


def first_line(values: CommentedMap, key: str) -> str:
    """Return the comment on the line of a key in YAML."""
    beside = values.ca.items.get(key)  # ruamel's four places of a comment, the third on the line itself
    line = beside[2].value.splitlines()[0] if beside and beside[2] else ""
    return str(line).strip().removeprefix("#").strip()


def _beside(model: type[BaseModel]) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(model))
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    text = {token.start[0]: token.string.lstrip("#").strip() for token in tokens if token.type == tokenize.COMMENT}
    text = {line: comment for line, comment in text.items() if not PRAGMA.match(comment)}
    alone = {number for number, line in enumerate(source.splitlines(), 1) if line.lstrip().startswith("#")}
    found, body = {}, ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = range(first, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(text[line] for line in lines if line in text)
    return found
