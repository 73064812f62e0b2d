"""The tables of all studies, kept in git: a row per finished run, a row per weighting of each, and the axes they are on.

`runs.csv` holds one row per run, `points/RUN.csv` beside it one per weighting of a run, `axes/HASH.json` what the numbers mean:
objectives, normalization, KL strength, prompts. So no file grows with every run but the short one. Every row carries a hash of
its cells, so that none is edited by hand unseen.
"""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clp_lightning.errors import ClpError
from clp_lightning.files import atomic, fingerprint, locked, read_json, utf8, write_json

RUNS = (
    "run", "study", "panel", "arm", "budget", "seed", "recipe", "method", "objectives", "split", "rollouts", "learning_rate",
    "gradient_clip", "settings", "mean_j", "mean_j_error", "corners_j", "mean_kl", "worst_objective", "hypervolume",
    "hypervolume_above_reference", "regularized_hypervolume_above_reference", "length", "gradient_norm", "clipped",
    "weightings", "prompts", "groups", "axes", "config", "commit", "version", "machine", "computed_on", "seconds", "date", "hash",
)  # fmt: skip
POINTS = ("run", "weighting", "j", "j_error", "kl", "rewards", "by_prompt", "hash")
KEY = ("study", "panel", "arm", "budget", "seed")
REMEDY = "restore the file with git, or delete the row and run its study again"

LEDGER = """# Ledger of studies

Written by `clp study` from `runs.csv` after every run. Settings are chosen on the split `validation`; `test` is for what is
reported, with training seeds on which nothing was chosen.

| study | recipe | split | what it decides | arms and what they change | training seeds | rollouts | runs | days |
|---|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Tables:
    """Every finished run with its points, checked; numbers are numbers."""

    runs: list[dict[str, Any]]
    points: dict[str, list[dict[str, Any]]]  # run -> its rows, in the order of the weightings
    axes: dict[str, dict[str, Any]]  # hash -> what the numbers of a run mean

    def find(self, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """Return the run with this key (study, panel, arm, budget, seed), or None."""
        return next((row for row in self.runs if tuple(row[name] for name in KEY) == key), None)


def read(path: Path) -> Tables:
    """Read the tables of `path` (runs.csv); none are there before the first run.

    Raises `ClpError` with the file and the line for another header, a cell that is no number, a row that does not match its
    hash, a run that is there twice, and points or axes that are missing.
    """
    runs = _rows(path, RUNS, _run)
    points = {row["run"]: _rows(points_of(path, row["run"]), POINTS, _point) for row in runs}
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in enumerate(runs, 2):
        key = tuple(row[name] for name in KEY)
        if key in seen:
            raise ClpError(f"{path}:{line}: the run of line {seen[key]} again ({_shown(row)}); delete one of the two")
        seen[key] = line
        if (found := len(points[row["run"]])) != row["weightings"]:
            file = points_of(path, row["run"])
            raise ClpError(f"{path}:{line}: {row['weightings']} weightings, but {file} has {found}; {REMEDY}")
    return Tables(runs, points, {name: _axes(path, name) for name in sorted({row["axes"] for row in runs})})


def add(path: Path, run: Mapping[str, Any], points: Sequence[Mapping[str, Any]], axes: Mapping[str, Any]) -> None:
    """Add a finished run, whole or not at all: its axes and points first, then the row that makes it count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        found = read(path)
        if found.find(tuple(run[name] for name in KEY)):
            raise ClpError(f"{path}: {_shown(run)} is there already; delete its row to run it again")
        target = path.parent / "axes" / f"{run['axes']}.json"
        if not target.is_file():
            write_json(target, axes)
        points_of(path, run["run"]).parent.mkdir(exist_ok=True)
        _write(points_of(path, run["run"]), POINTS, points, ("weighting",))
        _write(path, RUNS, [*found.runs, run], KEY)


def write_ledger(path: Path, tables: Tables, questions: Mapping[str, str]) -> None:
    """Write `ledger.md` beside `path` (runs.csv): what was tuned on what, a row per study, recipe and split.

    `questions` says of a study what it decides.
    """
    lines = []
    for cell in sorted({(row["study"], row["recipe"], row["split"]) for row in tables.runs}):
        rows = [row for row in tables.runs if (row["study"], row["recipe"], row["split"]) == cell]
        arms = dict.fromkeys(f"{row['arm']} ({row['settings']})" if row["settings"] else row["arm"] for row in rows)
        days = sorted({row["date"][:10] for row in rows})
        seeds, rollouts = (", ".join(map(str, sorted({row[key] for row in rows}))) for key in ("seed", "rollouts"))
        question, between = questions.get(cell[0], "–"), " to ".join(dict.fromkeys((days[0], days[-1])))
        shown = (*cell, question, ", ".join(arms), seeds, rollouts, str(len(rows)), between)
        lines.append(f"| {' | '.join(each.replace('|', '/') for each in shown)} |\n")
    with atomic(path.with_name("ledger.md")) as beside:
        beside.write_text(LEDGER + "".join(lines), encoding="utf-8")


def points_of(path: Path, run: str) -> Path:
    """Return where the points of a run in `path` (runs.csv) are."""
    return path.parent / "points" / f"{run}.csv"


def axes_hash(axes: Mapping[str, Any]) -> str:
    """Return the name of axes: runs of other axes are never compared unasked."""
    return fingerprint(axes)[:12]


def numbers(cell: str) -> list[float]:
    """Read the numbers of one cell, `0.5:0.25`."""
    return [float(part) for part in cell.split(":")]


def cell(values: Iterable[float], digits: int = 4) -> str:
    """Write numbers into one cell."""
    return ":".join(f"{round(float(value), digits):g}" for value in values)


INTEGERS = ("seed", "objectives", "rollouts", "weightings", "prompts", "groups")
FLOATS = (
    "budget", "learning_rate", "gradient_clip", "mean_kl", "worst_objective", "hypervolume", "hypervolume_above_reference",
    "length", "gradient_norm", "clipped", "seconds",
)  # fmt: skip
# Empty where there is none: of a method with models for some weightings only, of one reward swept over KL strengths.
OPTIONAL = ("mean_j", "mean_j_error", "regularized_hypervolume_above_reference")


def _run(row: dict[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = dict(row)
    read |= {name: int(row[name]) for name in INTEGERS} | {name: float(row[name]) for name in FLOATS}
    return read | {name: float(row[name]) if row[name] else None for name in OPTIONAL}


def _point(row: dict[str, str]) -> dict[str, Any]:
    lists = {name: numbers(row[name]) for name in ("weighting", "rewards", "by_prompt")}
    return {**row, **{name: float(row[name]) for name in ("j", "j_error", "kl")}, **lists}


def _rows(path: Path, columns: Sequence[str], convert: Any) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    reader = csv.DictReader(io.StringIO(utf8(path.read_bytes(), path)), strict=True)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        lost = [name for name in columns if name not in (reader.fieldnames or ())]
        wrong = f"no column {lost[0]}" if lost else "other columns, or in another order"
        raise ClpError(f"{path}:1: {wrong}; its header is {','.join(columns)}: restore it with git")
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values() or _hash(row) != row["hash"]:
                raise ClpError(f"{path}:{reader.line_num}: does not match its hash, so it was edited by hand; {REMEDY}")
            rows.append(convert(row))
    except csv.Error as error:
        raise ClpError(f"{path}:{reader.line_num}: {error}; {REMEDY}") from error
    return rows


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> None:
    """Write rows in order, so that what two machines add merges in git."""
    plain = []
    for row in sorted(rows, key=lambda row: tuple(row[name] for name in order)):
        cells = {name: _text(row[name]) for name in columns if name != "hash"}
        plain.append({**cells, "hash": _hash(cells)})
    with atomic(path) as file, file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return cell(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _hash(row: Mapping[str, str]) -> str:
    return fingerprint({name: value for name, value in row.items() if name != "hash"})[:8]


def _axes(path: Path, name: str) -> dict[str, Any]:
    file = path.parent / "axes" / f"{name}.json"
    axes = read_json(file, remedy="restore it with git")
    if axes_hash(axes) != name:
        raise ClpError(f"{file}: does not match its name, so it was edited by hand; restore it with git")
    return dict(axes)


def _shown(row: Mapping[str, Any]) -> str:
    return f"{row['study']}: {row['panel']}/{row['arm']} x{row['budget']:g} seed {row['seed']}"
