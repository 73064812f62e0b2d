"""The tables of studies: what is written comes back, what was edited by hand does not, and a run is there whole or not at all."""

import csv
import json

import numpy as np
import pytest

from clp_lightning.errors import ClpError
from clp_lightning.study import table
from clp_lightning.study.table import Tables

AXES = {
    "objectives": ["a", "b"], "alpha": 0.1, "split": "test", "lattice": 3, "reference_means": [0.0, 0.0], "reference_point": -3.0,
    "prompts": [["p1", "x"], ["p2", "x"], ["p3", "y"], ["p4", "z"]],
}  # fmt: skip
GRID = [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]


def run_rows(arm="clp-full", seed=3, budget=1.0, *, values=None, weightings=GRID, axes=AXES, **changes):
    """A run's row and its points; `values` [M, P] is J of every prompt."""
    values = np.zeros((len(weightings), len(axes["prompts"]))) if values is None else np.asarray(values, dtype=float)
    name = f"{arm}-{seed}-{budget:g}"
    row = {
        "run": name, "study": "s", "panel": "two", "arm": arm, "budget": budget, "seed": seed, "recipe": "default", "method": arm,
        "objectives": 2, "split": "test", "rollouts": round(600 * budget), "learning_rate": 1e-3, "gradient_clip": 1.0,
        "settings": "", "mean_j": float(values.mean()) if len(weightings) == len(GRID) else None, "mean_j_error": 0.1,
        "corners_j": [0.25, 0.5], "worst_objective": 0.1, "hypervolume": 9.0, "hypervolume_above_reference": 0.5,
        "regularized_hypervolume_above_reference": 0.4, "mean_kl": 2.0, "length": 9.0, "gradient_norm": 0.5, "clipped": 0.25,
        "weightings": len(weightings), "prompts": 4, "groups": 3, "axes": table.axes_hash(axes), "config": "c" * 12,
        "commit": "abc", "version": "0", "machine": "m, fast", "computed_on": "float32, cpu, 1 thread",
        "seconds": 60.5, "date": "2026-11-28T00:00:00Z",
    } | changes  # fmt: skip
    points = [
        {"run": name, "weighting": w, "j": float(v.mean()), "j_error": 0.1, "kl": 2.0, "rewards": [0.1, 0.2],
         "by_prompt": v.tolist()}
        for w, v in zip(weightings, values, strict=True)
    ]  # fmt: skip
    return row, points


def written(folder, *runs, axes=AXES):
    for row, points in runs:
        table.add(folder / "runs.csv", row, points, axes)
    return folder / "runs.csv"


def test_what_is_added_comes_back_in_order(tmp_path):
    values = [[0.125, -1, 2, 0], [1, 2, 3, 4], [0, 0, 0, -0.001]]
    path = written(tmp_path, run_rows(seed=4), run_rows(seed=3, values=values), run_rows("soups"))
    first, tables = path.read_bytes(), table.read(path)
    assert [(row["arm"], row["seed"]) for row in tables.runs] == [("clp-full", 3), ("clp-full", 4), ("soups", 3)]
    assert [point["by_prompt"] for point in tables.points["clp-full-3-1"]] == values
    assert [point["weighting"] for point in tables.points["clp-full-3-1"]] == GRID
    row = tables.find(("s", "two", "clp-full", 1.0, 3))
    assert row["machine"] == "m, fast" and row["seconds"] == 60.5 and row["corners_j"] == "0.25:0.5"
    assert tables.axes == {table.axes_hash(AXES): AXES} and tables.find(("s", "two", "x", 1.0, 3)) is None
    path.unlink()
    for each in reversed(tables.runs):  # in another order and read once already: the same bytes
        table.add(path, each, tables.points[each["run"]], AXES)
    assert path.read_bytes() == first


def test_a_run_is_there_once(tmp_path):
    path = written(tmp_path, run_rows())
    with pytest.raises(ClpError, match="two/clp-full x1 seed 3 is there already; delete its row"):
        written(tmp_path, run_rows())
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    with pytest.raises(
        ClpError, match=r"runs.csv:3: the run of line 2 again \(s: two/clp-full x1 seed 3\); delete one"
    ):
        table.read(path)


def edit(path, name, value, line=0):
    rows = list(csv.DictReader(path.open()))
    rows[line][name] = value
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("runs.csv", "mean_j"),
        ("runs.csv", "seed"),
        ("points/clp-full-3-1.csv", "j"),
        ("points/clp-full-3-1.csv", "run"),
    ],
)
def test_a_cell_that_was_edited_by_hand_is_found(tmp_path, file, name):
    path = written(tmp_path, run_rows())
    edit(tmp_path / file, name, "0.9")
    with pytest.raises(
        ClpError, match=rf"{file}:2: does not match its hash, so it was edited by hand; restore the file with git"
    ):
        table.read(path)


def test_what_is_lost_is_found(tmp_path):
    path = written(tmp_path, run_rows())
    points, runs = tmp_path / "points/clp-full-3-1.csv", path.read_text()
    kept = points.read_text()
    points.write_text("".join(kept.splitlines(keepends=True)[:-1]))
    with pytest.raises(ClpError, match=r"runs.csv:2: 3 weightings, but .*points/clp-full-3-1.csv has 2; restore"):
        table.read(path)
    points.write_text(kept)
    path.write_text(runs.replace(",seed,", ",sead,"))
    with pytest.raises(ClpError, match=r"runs.csv:1: no column seed; its header is run,study,"):
        table.read(path)
    path.write_text(runs[:-20])
    with pytest.raises(ClpError, match=r"runs.csv:2: does not match its hash"):
        table.read(path)
    path.write_text(runs)
    (axes,) = (tmp_path / "axes").iterdir()
    axes.write_text(json.dumps(AXES | {"alpha": 0.2}))
    with pytest.raises(ClpError, match="does not match its name, so it was edited by hand"):
        table.read(path)
    axes.unlink()
    with pytest.raises(ClpError, match="restore it with git"):
        table.read(path)


def test_points_of_a_run_that_never_got_its_row_do_not_count(tmp_path):
    """A kill between the two files: the run is made again, and its points are there once."""
    path = written(tmp_path, run_rows(), run_rows("soups"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))  # without soups' row
    assert [row["arm"] for row in table.read(path).runs] == ["clp-full"]
    written(tmp_path, run_rows("soups"))
    tables = table.read(path)
    assert [len(tables.points[row["run"]]) for row in tables.runs] == [3, 3]


def test_the_ledger_says_what_was_tuned_on_what(tmp_path):
    tuned = run_rows("lr", 10, settings="learning_rate=0.003", split="validation", study="lr", run="x")
    tuned = tuned[0], [point | {"run": "x"} for point in tuned[1]]
    path = written(tmp_path, run_rows(), run_rows(seed=4), tuned)
    table.write_ledger(path, table.read(path), {"lr": "which learning | rate"})
    rows = [line for line in (tmp_path / "ledger.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| lr | default | validation | which learning / rate | lr (learning_rate=0.003) | 10 | 600 | 1 | 2026-11-28 |",
        "| s | default | test | – | clp-full | 3, 4 | 600 | 2 | 2026-11-28 |",
    ]


def test_no_table_is_an_empty_one(tmp_path):
    assert table.read(tmp_path / "runs.csv") == Tables([], {}, {})
