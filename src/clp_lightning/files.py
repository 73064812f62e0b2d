"""Atomic files and folders: written beside the final name, then swapped in with `os.replace`."""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clp_lightning.errors import ClpError, UsageError

_UMASK = os.umask(0o077)  # it can only be read by setting it, which is safe before threads start
os.umask(_UMASK)

JSON_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or folder to; it takes `path`'s place only if the block succeeds.

    What a killed predecessor left is removed first. Raises `ClpError` when the disk is full or not writable, and when a file
    would take the place of a folder; an error of the block's own, also about other files, passes through.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UsageError(f"{path}: this is the folder you are in, or above it; name a file or folder in it")
    beside, in_block = path.with_name(f".{path.name}.partial"), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        _remove(beside)
        in_block = True
        yield beside
        in_block = False
        if path.is_dir() and beside.is_file():
            raise ClpError(f"{path} is a folder, and a file never takes the place of one; name a file in it")
        _settle(beside)
        _replace(beside, path)
    except OSError as error:
        if in_block and error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(beside):
            raise
        reason = error.strerror or error
        raise ClpError(f"cannot write {path}: {reason}; free space or fix permissions, then run again") from error
    finally:
        with contextlib.suppress(OSError):  # the error that is on its way says more
            _remove(beside)


def file_at(path: Path, name: str) -> Path:
    """Return where a file goes that a user asked for: `path` itself or, where that is a folder, `name` in it."""
    return path / name if path.is_dir() else path


def check_replaceable(folder: Path | str, mark: str) -> None:
    """Raise `UsageError` unless a folder may be written: one that is not there, is empty, or is ours and has the file `mark`."""
    folder = Path(folder)
    if folder.name in ("", "..") or Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(f"{folder}: this is the folder you are in, or above it; name another")
    if folder.is_file():
        raise UsageError(f"{folder}: there is a file of this name; name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise UsageError(
            f"{folder}: holds files that this command did not write (it has no {mark}); name another folder"
        )


@contextlib.contextmanager
def locked(folder: Path | str, *, wait: bool = True) -> Iterator[None]:
    """Let other processes that ask for this folder wait until the block is done; a process that dies lets go.

    With `wait` false a folder that another process holds raises `BlockingIOError`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically; non-finite numbers raise ValueError."""
    with atomic(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str, *, remedy: str, keys: Mapping[str, type] | None = None) -> Any:
    """Read JSON; a missing or broken file is a one-line `ClpError` that ends with `remedy`.

    So is one that is not an object with `keys`, whose values are of these types, where any are given.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClpError(f"cannot read {path}: {error}; {remedy}") from error
    for key, kind in (keys or {}).items():
        if not isinstance(values, dict) or key not in values:
            raise ClpError(f"{path}: {key}: missing; {remedy}")
        if not isinstance(values[key], kind):
            raise ClpError(f"{path}: {key}: expected {JSON_NAMES[kind]}, but found {values[key]!r}; {remedy}")
    return values


def utf8(raw: bytes, where: Path | str) -> str:
    """Return what bytes say, without a byte order mark; raises `UsageError` with the line and the byte that is no UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise UsageError(f"{where}:{line}: not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from None


def fingerprint(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 over JSON-able values and the contents of files and folders given as Path."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(part.rglob("*")) if part.is_dir() else [part]:
                if file.is_file():
                    name = file.relative_to(part) if part.is_dir() else Path(file.name)
                    digest.update(b"file " + json.dumps(name.as_posix()).encode())
                    with file.open("rb") as stream:
                        digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(b"value " + json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _settle(path: Path) -> None:
    """Bring files to the disk, or a power cut after the swap could leave an empty one under the final name.

    They also get the mode that `open` would have given them: safetensors and temporary files are made with 0600.
    """
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~_UMASK)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _replace(source: Path, target: Path) -> None:
    if not (target.is_dir() or (source.is_dir() and target.exists())):
        os.replace(source, target)
        return
    # A folder cannot be replaced in one call: the old one is moved aside, so that there is never a mixture.
    aside = _aside(target)
    _remove(aside)
    os.replace(target, aside)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(aside, target)
        raise
    _remove(aside)


def _recover(target: Path) -> None:
    """Finish what a writer left that was killed between the two steps of `_replace`: the old content comes back."""
    aside = _aside(target)
    if aside.exists() and not target.exists():
        os.replace(aside, target)
    else:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_curve(rows: list[dict[str, float]], path: Path) -> None:
    """Write a training curve as CSV: `step`, then every recorded value; empty where a row has none."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list({name: None for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
