"""What a study says: mean J per arm and budget, who is ahead where, and at how many rollouts the others catch up."""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from clp_lightning.errors import ClpError, plural
from clp_lightning.frontier.bootstrap import cluster_bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.seeds import Estimate, hierarchical
from clp_lightning.study.definition import Study
from clp_lightning.study.runs import Run, outstanding
from clp_lightning.study.table import Tables, read
from clp_lightning.weightings import on_lattice

ALIKE = ("axes", "computed_on")  # what runs share that are compared
DRAWS = 2000
NOTE = (
    "J(w) = (1 - alpha) w.R - alpha KL; its mean is over the grid. Intervals are 95 %, over training seeds and groups of prompts"
    " together (of one seed over prompts alone), each for its figure alone. + and - count the weightings at which the first arm"
    " is ahead and behind by an interval that excludes 0; an arm catches up where its mean J reaches the first arm's of that"
    " budget."
)


class Cell(NamedTuple):
    """The runs of one arm with one budget: per training seed J [M, P], at weightings [M, K]."""

    rows: dict[int, dict[str, Any]]
    values: dict[int, Array]
    weightings: Array


def report(
    study: Study, runs: Sequence[Run], path: Path, picture: Path, *, pool: bool = False, as_json: bool = False
) -> None:
    """Print the table of a study (or JSON) and draw its picture; raises `ClpError` when it has no run yet."""
    from clp_lightning.study.picture import draw

    compared = compare(study, runs, read(path), path, pool=pool)
    draw(compared, picture)
    if as_json:
        print(json.dumps(compared, indent=2))
        return
    _print(compared, Console(width=None if sys.stdout.isatty() else 170))
    print(f"wrote {picture}")


def compare(study: Study, runs: Sequence[Run], tables: Tables, path: Path, *, pool: bool = False) -> dict[str, Any]:
    """Return the comparison of a study's runs that are in the tables: per panel, budget and arm, against the first arm.

    Intervals are 95 % over training seeds and groups of prompts together. Runs that differ in axes, or in what they were
    computed on, are a `ClpError`, or with `pool` compared seed by seed where they agree.
    """
    left = {run.key for run in outstanding(runs, tables, path)}
    found = [(run, row) for run in runs if run.key not in left and (row := tables.find(run.key))]
    if not found:
        raise ClpError(f"{path}: no run of study {runs[0].study} yet; run `clp study {runs[0].study}` first")
    panels = []
    for panel in study.panels:
        rows = [row for run, row in found if run.panel == panel]
        if rows:
            several = check_alike(rows, path, pool=pool)
            panels.append(_panel(panel, list(study.arms_of(panel)), rows, tables) | {"pooled": several})
    commits = sorted({row["commit"] for _, row in found})
    return {
        "study": runs[0].study,
        "question": " ".join(study.question.split()),
        "split": study.split,
        "runs": len(found),
        "planned": len(runs),
        "commits": commits,
        "panels": panels,
    }


def check_alike(rows: Sequence[Mapping[str, Any]], path: Path, *, pool: bool) -> list[str]:
    """Return in what the rows differ, of what runs must share; raises `ClpError` for it unless they are to be pooled."""
    several = [name for name in ALIKE if len({row[name] for row in rows}) > 1]
    if several and not pool:
        first, other = rows[0], next(row for row in rows if row[several[0]] != rows[0][several[0]])
        raise ClpError(
            f"{path}: panel {first['panel']} has runs with other {several[0]}: {first['run']} {first[several[0]]}, "
            f"{other['run']} {other[several[0]]}; run it again on one machine, or add --pool to compare each within its own"
        )
    return several


def _panel(panel: str, arms: Sequence[str], rows: Sequence[dict[str, Any]], tables: Tables) -> dict[str, Any]:
    cells: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["arm"], row["budget"]), []).append(row)
    read = {key: _cell(group, tables) for key, group in cells.items()}
    axes = tables.axes[rows[0]["axes"]]
    lead, table = arms[0], []
    curves = {arm: _curve(arm, read, axes) for arm in arms}
    for budget in sorted({budget for _, budget in cells}):
        for arm in arms:
            if (cell := read.get((arm, budget))) is None:
                continue
            line = {"arm": arm, "budget": budget, **_describe(cell, axes), "mean_j": _as_dict(_mean(cell, axes))}
            if arm != lead and (other := read.get((lead, budget))) is not None:
                line["against"] = _against(other, cell, axes)
                line["catches_up"] = _catches_up(curves[arm], _mean(other, axes))
            table.append(line)
    return {"panel": panel, "recipe": rows[0]["recipe"], "objectives": axes["objectives"], "lead": lead, "rows": table}


def _cell(rows: Sequence[dict[str, Any]], tables: Tables) -> Cell:
    points = {row["seed"]: tables.points[row["run"]] for row in rows}
    first = next(iter(points.values()))
    return Cell(
        {row["seed"]: row for row in rows},
        {seed: np.array([point["by_prompt"] for point in each]) for seed, each in points.items()},
        np.array([point["weighting"] for point in first]),
    )


def _describe(cell: Cell, axes: Mapping[str, Any]) -> dict[str, Any]:
    rows = list(cell.rows.values())
    means = ("mean_kl", "worst_objective", "hypervolume_above_reference", "gradient_norm", "clipped", "seconds")
    return {
        "seeds": sorted(cell.rows),
        "rollouts": rows[0]["rollouts"],
        **{name: float(np.mean([row[name] for row in rows])) for name in means},
    }


def _on_grid(weightings: Array, axes: Mapping[str, Any]) -> Array:
    """Mark the weightings [M, K] that the mean of J is over; of one reward all are KL strengths."""
    if weightings.shape[1] == 1:
        return np.ones(len(weightings), dtype=bool)
    return on_lattice(weightings, axes["lattice"])


def _mean(cell: Cell, axes: Mapping[str, Any]) -> Estimate | None:
    """Mean of J over the grid; None for a method that was not evaluated on all of it."""
    if any(row["mean_j"] is None for row in cell.rows.values()):
        return None
    on = _on_grid(cell.weightings, axes)
    return _estimate(np.stack([values[on].mean(0) for values in cell.values.values()]), axes)


def _against(lead: Cell, other: Cell, axes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare two cells seed by seed at the weightings that both have: the lead minus the other."""
    seeds = [seed for seed in lead.rows if seed in other.rows and _same(lead.rows[seed], other.rows[seed])]
    near = np.abs(lead.weightings[:, None] - other.weightings).max(-1) < 1e-6
    at_lead, at_other = np.nonzero(near & _on_grid(lead.weightings, axes)[:, None])
    if not seeds or not len(at_lead):
        return None
    ahead = np.stack([lead.values[seed][at_lead] - other.values[seed][at_other] for seed in seeds])  # [S, M, P]
    each = [_estimate(ahead[:, m], axes) for m in range(len(at_lead))]
    worst = min(range(len(each)), key=lambda m: each[m].value)
    return {
        "seeds": seeds,
        "weightings": len(each),
        **_as_dict(_estimate(ahead.mean(1), axes)),
        "ahead": sum(one.low > 0 for one in each),
        "behind": sum(one.high < 0 for one in each),
        "points": [
            {"weighting": lead.weightings[i].tolist(), **_as_dict(one)} for i, one in zip(at_lead, each, strict=True)
        ],
        "furthest_behind": {"weighting": lead.weightings[at_lead[worst]].tolist(), **_as_dict(each[worst])},
    }


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(row[name] == other[name] for name in ALIKE)


def _estimate(values: Array, axes: Mapping[str, Any]) -> Estimate:
    """Mean over seeds and prompts of `values` [S, P]: seeds are the outer level, groups of prompts the inner one."""
    bootstrap = cluster_bootstrap(values, [group for _, group in axes["prompts"]], DRAWS, seed=0)
    return hierarchical(bootstrap.averages(values), bootstrap)


def _curve(arm: str, cells: Mapping[tuple[str, float], Cell], axes: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return an arm's mean J by rollouts, ascending."""
    of = [(cell, _mean(cell, axes)) for (name, _), cell in cells.items() if name == arm]
    return sorted((next(iter(cell.rows.values()))["rollouts"], mean.value) for cell, mean in of if mean is not None)


def _catches_up(curve: Sequence[tuple[int, float]], goal: Estimate | None) -> dict[str, Any] | None:
    """Return at how many rollouts a curve reaches a mean of J: between budgets on a straight line over log(rollouts).

    `bound` says "<=" when it is there with its smallest budget, ">" when it is not with its largest.
    """
    if goal is None or not curve:
        return None
    if curve[0][1] >= goal.value:
        return {"rollouts": curve[0][0], "bound": "<="}
    for (x, y), (further, higher) in itertools.pairwise(curve):
        if higher >= goal.value:
            share = (goal.value - y) / (higher - y)
            return {"rollouts": round(float(np.exp(np.log(x) + share * np.log(further / x)))), "bound": ""}
    return {"rollouts": curve[-1][0], "bound": ">"}


def _as_dict(estimate: Estimate | None) -> Any:
    return None if estimate is None else estimate._asdict()


def _print(compared: Mapping[str, Any], console: Console) -> None:
    """Print one table, and what it rests on."""
    lead = compared["panels"][0]["lead"]
    table = Table(title=f"{compared['question']} ({compared['split']} split)", title_justify="left")
    table.add_column("arm", no_wrap=True)
    heads = ("rollouts", "seeds", "mean J", "KL", f"{lead} minus it", "+, - of", "furthest behind", "catches up")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for panel in compared["panels"]:
        table.add_row(f"[bold]{panel['panel']}[/]: {', '.join(panel['objectives'])}")
        for position, line in enumerate(panel["rows"]):
            if line["arm"] == panel["lead"] and position:
                table.add_section()
            table.add_row(*_cells(line))
        table.add_section()
    console.print(table)
    done = f"{compared['runs']} of {plural(compared['planned'], 'run')}, of commit {', '.join(compared['commits'])}."
    console.print(f"{done} {NOTE}", highlight=False)
    for panel in compared["panels"]:
        if panel["pooled"]:
            console.print(
                f"{panel['panel']}: runs differ in {', '.join(panel['pooled'])}; compared within their own only"
            )


def _cells(line: Mapping[str, Any]) -> list[str]:
    against, catches = line.get("against"), line.get("catches_up")
    shown = [
        line["arm"],
        str(line["rollouts"]),
        str(len(line["seeds"])),
        _shown(line["mean_j"]),
        f"{round(line['mean_kl'], 1) + 0.0:.1f}",
    ]
    if against is None:
        return [*shown, "", "", "", ""]
    worst = against["furthest_behind"]
    return [
        *shown,
        _shown(against),
        f"{against['ahead']}, {against['behind']} of {against['weightings']}",
        f"{worst['value']:+.2f} at {':'.join(f'{w:g}' for w in worst['weighting'])}",
        f"{catches['bound']} {catches['rollouts']}".strip() if catches else "",
    ]


def _shown(estimate: Mapping[str, Any] | None) -> str:
    return "–" if estimate is None else f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"
