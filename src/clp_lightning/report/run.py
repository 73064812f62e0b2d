"""The comparison of a run's methods: as JSON, and in the files of a report."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clp_lightning.files import atomic, write_json
from clp_lightning.report.picture import picture
from clp_lightning.store.queries import MONITORS, Store

AGAINST = ("win_rate", "epsilon", "dominates_all", "regularized_dominates_all")


def comparison(store: Store, run: str | None = None) -> dict[str, Any]:
    """Everything that is reported about one run (the latest by default): the contract of `clp frontier --json`.

    JSON-able values. `weighting` is null for a policy that takes none; intervals are 95 %, from a bootstrap over
    groups of prompts. Raises `ClpError` when there is no such run.
    """
    row = store.run(run)
    run_id, objectives = row["run_id"], row["objectives"]
    metrics, points, methods = store.metrics(run_id), store.points(run_id), store.methods(run_id)
    regularized, values = store.points(run_id, regularized=True), store.objective(run_id)
    kl = metrics[metrics.metric == "mean_kl"].set_index("method").value.to_dict()
    groups, compared = store.groups(run_id), []
    for _, cost in methods[methods.problem.isna()].drop(columns=["problem", "weights_hash"]).iterrows():
        method = cost.pop("method")
        own = metrics[metrics.method == method]
        volume = own[own.metric == "hypervolume"].iloc[0]
        compared.append(
            {
                "method": method,
                **_of_j(own),
                "hypervolume": float(volume.value),
                "hypervolume_interval": [float(volume.low), float(volume.high)],
                "dominated_share": _values(own, "dominated_share"),
                "regularized_dominated_share": _values(own, "regularized_dominated_share"),
                "steerability": {target: each["value"] for target, each in _values(own, "steerability").items()},
                "metrics": {row.metric: _value(row) for _, row in own[own.target.isna()].iterrows()},
                "by_objective": {name: _values(own, name) for name in ("range", "violations")},
                "against": {name: _values(own, name) for name in AGAINST},
                "points": [_point(point, objectives) for _, point in points[points.method == method].iterrows()],
                "regularized_points": [
                    _vector(point, objectives) for _, point in regularized[regularized.method == method].iterrows()
                ],
                "by_weighting": [_at(point, objectives) for _, point in values[values.method == method].iterrows()],
                "cost": {name: _number(value) for name, value in cost.items()},
            }
        )
    return {
        "run": run_id,
        "published_at": row["published_at"].isoformat(timespec="seconds") + "Z",
        "code_commit": None if pd.isna(row["code_commit"]) else row["code_commit"],
        "seed": row["seed"],
        "corpus_hash": row["corpus_hash"],
        "objectives": objectives,
        "alpha": _number(row["alpha"]),
        "groups": None if groups is None else len(set(groups)),
        "computed_on": row["computed_on"],
        "reference_point": dict(zip(objectives, row["reference_point"], strict=True)),
        "normalization": row["normalization"],
        "prompts": row["prompts"],
        "bootstrap_draws": row["bootstrap_draws"],
        "training_seed": _number(row["training_seed"]),
        "methods": compared,
        "left_out": dict(methods.dropna(subset="problem").set_index("method").problem),
        "comparisons": [
            {
                "methods": [pair.method_a, pair.method_b],
                "statistic": pair.statistic,
                "difference": float(pair.difference),
                "interval": [float(pair.low), float(pair.high)],
                "probability": float(pair.probability),
                "kl": {name: float(kl[name]) for name in pair[["method_a", "method_b"]]} if kl else None,
            }
            for _, pair in store.comparisons(run_id).iterrows()
        ],
        "by_weighting": [
            {
                "methods": [pair.method_a, pair.method_b],
                "weighting": _weighting(pair, objectives),
                "difference": float(pair.difference),
                "interval": [float(pair.from_), float(pair.to_)],
                "probability": float(pair.probability),
            }
            for _, pair in store.by_weighting(run_id).iterrows()
        ],
    }


def write_report(comparison: Mapping[str, Any], folder: Path | str) -> None:
    """Write `frontier.json`, `frontier.png` and `points.csv` (one row per point, for `dvc plots`) into `folder`."""
    folder, objectives = Path(folder), comparison["objectives"]
    write_json(folder / "frontier.json", comparison)
    picture(comparison, folder / "frontier.png")
    with atomic(folder / "points.csv") as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", *(f"w:{name}" for name in objectives), *objectives, *MONITORS])
        for method in comparison["methods"]:
            for point in method["points"]:
                weights = [(point["weighting"] or {}).get(name, "") for name in objectives]
                rewards = [point["rewards"][name] for name in objectives]
                writer.writerow([method["method"], *weights, *rewards, *(point["monitors"][name] for name in MONITORS)])


def _values(own: pd.DataFrame, metric: str) -> dict[str, dict[str, Any]]:
    return {row.target: _value(row) for _, row in own[own.metric == metric].iterrows()}


def _value(row: pd.Series) -> dict[str, Any]:
    interval = None if pd.isna(row.low) else [float(row.low), float(row.high)]
    return {"value": float(row.value), "interval": interval}


def _of_j(own: pd.DataFrame) -> dict[str, Any]:
    """What the report leads with; None in a run without J (of an older version, with too few prompts)."""
    found = {row.metric: row for _, row in own[own.target.isna()].iterrows()}
    values = {
        name: float(found[name].value) if name in found else None for name in ("mean_j", "mean_kl", "mean_regret")
    }
    interval = _value(found["mean_j"])["interval"] if "mean_j" in found else None
    return {"mean_j": values["mean_j"], "mean_j_interval": interval} | values


def _weighting(point: pd.Series, objectives: Sequence[str]) -> dict[str, float | None] | None:
    weighting = {name: _number(point[f"w:{name}"]) for name in objectives}
    return None if None in weighting.values() else weighting


def _at(point: pd.Series, objectives: Sequence[str]) -> dict[str, Any]:
    """J at a weighting, and what the best method there has more."""
    return {
        "weighting": _weighting(point, objectives), "alpha": float(point.alpha), "kl": float(point.kl), "j": float(point.j),
        "j_interval": [float(point.j_low), float(point.j_high)], "regret": float(point.regret),
        "regret_interval": [float(point.regret_low), float(point.regret_high)],
    }  # fmt: skip


def _vector(point: pd.Series, objectives: Sequence[str]) -> dict[str, Any]:
    return {
        "weighting": _weighting(point, objectives),
        "rewards": {name: float(point[f"reward:{name}"]) for name in objectives},
        "intervals": {name: [float(point[f"low:{name}"]), float(point[f"high:{name}"])] for name in objectives},
    }


def _point(point: pd.Series, objectives: Sequence[str]) -> dict[str, Any]:
    return _vector(point, objectives) | {
        "monitors": {name: _number(point[name]) for name in MONITORS},
    }


def _number(value: Any) -> float | None:
    return float(value) if pd.notna(value) and math.isfinite(value) else None
