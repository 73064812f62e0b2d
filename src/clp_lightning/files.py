"""Atomic files and folders: written beside the final name, then swapped in with `os.replace`."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clp_lightning.errors import ClpError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or folder to; it takes `path`'s place only if the block succeeds.

    Leftovers of a killed predecessor are removed first. Raises `ClpError` when the disk is full or not writable.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        yield beside
        _replace(beside, path)
    except OSError as error:
        raise ClpError(
            f"cannot write {path}: {error.strerror or error}; free space or fix permissions, then run again"
        ) from error
    finally:
        _remove(beside)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically; non-finite numbers raise ValueError."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str, *, remedy: str) -> Any:
    """Read JSON; a missing or broken file is a one-line `ClpError` that ends with `remedy`."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClpError(f"cannot read {path}: {error}; {remedy}") from error


def fingerprint(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 over JSON-able values and the contents of files and folders given as Path."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(part.rglob("*")) if part.is_dir() else [part]:
                if file.is_file():
                    digest.update(file.name.encode())
                    with file.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():  # a folder cannot be replaced in one call: move the old one aside, never leave a mixture
        aside = target.with_name(f".{target.name}.old")
        _remove(aside)
        os.replace(target, aside)
        os.replace(source, target)
        _remove(aside)
    else:
        os.replace(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
