"""Rows of a user's own data: CSV, JSON Lines, Parquet, folders of Hugging Face datasets and hub names, one row at a time.

What cannot be read becomes a `Problem` with its place, never a row that is silently different.
"""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from clp_lightning.data import texts
from clp_lightning.errors import UsageError, one_line, plural

FILES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")  # each also with .gz behind it
MEGABYTE = 1 << 20


class Row(NamedTuple):
    """One row of a source; `place` says where it stands, `split` which split a dataset has it in.

    `ragged` says that rows of its source may have other keys each (JSON), so that a missing one is this row's problem alone.
    """

    source: str
    place: str
    values: dict[str, Any]
    split: str | None = None
    ragged: bool = False


class Problem(NamedTuple):
    """A row that cannot be used, and why; `other` is the place of another row that has to do with it."""

    place: str
    reason: str
    other: str = ""

    @property
    def text(self) -> str:
        """The reason, with the other row's place."""
        return f"{self.reason} ({self.other})" if self.other else self.reason


def read_rows(source: str, subset: str | None, root: Path = Path(".")) -> Iterator[Row | Problem]:
    """Yield rows and problems in order; raises `UsageError` when the source as a whole cannot be read."""
    path = root / source
    if path.is_file():
        yield from _file(path, source)
    elif path.is_dir() or not _can_only_be_a_path(source):
        yield from _dataset(path if path.is_dir() else source, subset, source, root)
    else:
        raise UsageError(f"{source}: no such file or folder; correct the path")


def _can_only_be_a_path(source: str) -> bool:
    """Whether a name is none of a dataset on the hub."""
    return source.startswith((".", "/", "~")) or source.removesuffix(".gz").endswith(FILES) or source.count("/") > 1


def value_of(row: Row, column: str, key: str) -> Any:
    """Return a column's value; without such a column `UsageError`, or `ValueError` where rows have other keys each."""
    if column not in row.values:
        known = ", ".join(map(str, row.values)) or "none"
        if row.ragged:
            raise ValueError(f"no key {column!r} ({key}); it has {known}")
        raise UsageError(f"{key}: {row.source} has no column {column!r}; it has {known}")
    return row.values[column]


def text_of(row: Row, column: str, key: str) -> str:
    """Return a column's text without the space around it; raises `ValueError` for what is none, else as `value_of`."""
    return texts.text(value_of(row, column, key), repr(column))


def _file(path: Path, source: str) -> Iterator[Row | Problem]:
    try:
        yield from _of_kind(path, source)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{source}: not a whole gzip file ({one_line(error)}); compress it again") from error


def _of_kind(path: Path, source: str) -> Iterator[Row | Problem]:
    kind = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    match kind:
        case ".csv" | ".tsv":
            yield from _delimited(path, source, "\t" if kind == ".tsv" else None)
        case ".jsonl" | ".ndjson":
            yield from _json_lines(path, source)
        case ".json":
            yield from _json(path, source)
        case ".parquet":
            yield from _parquet(path, source)
        case suffix:
            raise UsageError(
                f"{source}: files of the kind {suffix or 'without a suffix'} are not read; use {', '.join(FILES)}"
            )


def _open(path: Path) -> BinaryIO:
    """Open a file to read its bytes, those of a compressed one as they were."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path, source: str) -> Iterator[tuple[int, str | Problem]]:
    """Yield a text file's lines by number; a line that is no UTF-8 is a problem."""
    with _open(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                shown = raw[error.start : error.start + 1].hex()
                yield number, Problem(f"{source}:{number}", f"not UTF-8 (byte 0x{shown}); save the file as UTF-8")


def _delimited(path: Path, source: str, delimiter: str | None) -> Iterator[Row | Problem]:
    broken, pulled = (
        list[Problem](),
        list[int](),
    )  # since the last record: lines that are no text, and the others' numbers

    def text() -> Iterator[str]:
        for number, line in _lines(path, source):
            if isinstance(line, Problem):
                broken.append(line)
            else:
                pulled.append(number)
                yield line

    csv.field_size_limit(64 * MEGABYTE)
    with _open(path) as stream:
        start = stream.read(MEGABYTE // 16).decode("utf-8-sig", "replace")
    reader = csv.reader(text(), delimiter=delimiter or _delimiter(start), strict=True)
    try:
        header, reason = next(reader, None), "no line with the names of the columns"
    except csv.Error as error:
        header, reason = None, f"the line with the names of the columns is not well-formed ({error}); mend it"
    if not header or broken:
        raise UsageError(f"{source}:1: {broken[0].reason if broken else reason}")
    while header and not header[-1].strip():  # spreadsheets write empty columns behind the last
        header.pop()
    if len(set(header)) < len(header):
        raise UsageError(f"{source}:1: a column's name occurs twice among {', '.join(header)}; rename one")
    while True:
        pulled.clear()
        try:
            values, fault = next(reader, None), None
        except csv.Error as error:
            values, fault = (
                [],
                f"not well-formed up to line {pulled[-1]} ({error}); double the quotes inside of quotes",
            )
        yield from broken
        broken.clear()
        if values is None:
            return
        place = f"{source}:{pulled[0]}"
        while len(values) > len(header) and not values[-1].strip():
            values.pop()
        if fault is None and values and len(values) != len(header):
            fault = f"{plural(len(values), 'field')}, but the first line names {plural(len(header), 'column')}"
        if fault is not None:
            yield Problem(place, fault)
        elif values:  # else an empty line
            yield Row(source, place, dict(zip(header, values, strict=True)))


def _delimiter(start: str) -> str:
    """Return the delimiter of the header line: a semicolon where spreadsheets of some countries write one."""
    header = start.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _json_lines(path: Path, source: str) -> Iterator[Row | Problem]:
    for number, line in _lines(path, source):
        place = f"{source}:{number}"
        if isinstance(line, Problem):
            yield line
        elif line.strip():
            yield _object(line, source, place)


def _object(line: str, source: str, place: str) -> Row | Problem:
    try:
        values = _loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "too deep"
        return Problem(place, f"not JSON ({reason})")
    if not isinstance(values, dict):
        return Problem(place, "expected an object with the columns as keys")
    return Row(source, place, values, ragged=True)


def _loads(text: str) -> Any:
    """Read JSON; numbers become texts as they are written, NaN and Infinity what is missing."""
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=lambda _: None)


def _json(path: Path, source: str) -> Iterator[Row | Problem]:
    """Read a list of objects, or JSON Lines: `datasets.to_json` gives them this suffix too."""
    first = next((line for _, line in _lines(path, source) if isinstance(line, Problem) or line.strip()), "")
    if isinstance(first, str) and first.lstrip().startswith("{") and isinstance(_object(first, source, ""), Row):
        yield from _json_lines(path, source)
        return
    try:
        with _open(path) as stream:
            items = _loads(stream.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source}: not JSON ({error}); mend it, or write JSON Lines (.jsonl)") from error
    if not isinstance(items, list):
        raise UsageError(f"{source}: expected a list of objects, or one object per line")
    for number, item in enumerate(items, 1):
        place = f"{source}, item {number}"
        yield Row(source, place, item, ragged=True) if isinstance(item, dict) else Problem(place, "expected an object")


def _parquet(path: Path, source: str) -> Iterator[Row | Problem]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _open(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(source, f"{source}, row {number}", values)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{source}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error


def files_of(source: str, subset: str | None, root: Path = Path(".")) -> dict[str, list[str]]:
    """Return the files of a folder by the split that the library takes each for; nothing for other kinds of source."""
    place = root / source
    if not place.is_dir() or _saved(place):
        return {}
    import datasets

    found = datasets.load_dataset_builder(str(place), **_options(subset, root)).config.data_files or {}
    return {str(split): [os.path.relpath(file, place) for file in files] for split, files in found.items()}


def _saved(place: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _options(subset: str | None, root: Path) -> dict[str, Any]:
    inside = subset is not None and subset.endswith("/")  # a folder of the dataset, as hh-rlhf has them
    which = {"data_dir": subset} if inside else {"name": subset}
    return which | {"cache_dir": str(root / "build" / "datasets")}


def _dataset(place: Path | str, subset: str | None, source: str, root: Path) -> Iterator[Row | Problem]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    try:
        if isinstance(place, Path) and _saved(place):
            loaded = datasets.load_from_disk(str(place))
        else:  # a folder of files, or a name on the hub
            loaded = datasets.load_dataset(str(place), **_options(subset, root))
    except Exception as error:  # the library raises its own, those of the hub, of Arrow, and of the network
        raise UsageError(
            f"{source}: neither a readable dataset folder nor one on the hub ({one_line(error)}); to fetch one set "
            "HF_HUB_OFFLINE=0"
        ) from error
    splits = loaded.items() if isinstance(loaded, dict) else [(None, loaded)]
    for split, rows in splits:
        for number, values in enumerate(rows, 1):
            yield Row(source, f"{source}{f'/{split}' if split else ''}, row {number}", dict(values), split)
