"""Several runs of one store: which may be compared, and statistics over training seeds."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.seeds import hierarchical
from clp_lightning.store.queries import Store

# What two runs must share, and what to say where they do not.
AXES = {
    "objectives": "other objectives",
    "normalization": "another normalization of the rewards",
    "corpus_hash": "another corpus",
    "reference_point": "another reference point",
    "seed": "other test prompts (another seed)",
    "prompts": "another number of test prompts",
}


def obstacles(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return why two runs (rows of `Store.runs`) cannot be compared; an empty list if they can."""
    return [what for key, what in AXES.items() if one[key] != other[key]]


def comparable(store: Store, run: str, against: str) -> None:
    """Raise `ClpError` with the reasons when two runs cannot be compared."""
    reasons = obstacles(store.run(run), store.run(against))
    if reasons:
        raise ClpError(
            f"runs {run} and {against} cannot be compared: {against} has {'; '.join(reasons)}; evaluate both alike, then "
            "publish again"
        )


def siblings(store: Store, run: str | None = None) -> list[dict[str, Any]]:
    """Return the runs that differ from `run` (the latest by default) in nothing but their training seed, that run first.

    Of several runs with one training seed the last published counts.
    """
    first = store.run(run)
    found = {first["training_seed"]: first}
    for other in store.each_run():
        if _apart_from_seed(other) == _apart_from_seed(first) and not obstacles(first, other):
            found.setdefault(other["training_seed"], other)
    return list(found.values())


def _apart_from_seed(run: Mapping[str, Any]) -> dict[str, Any]:
    training = {key: value for key, value in run["params"].get("training", {}).items() if key != "seed"}
    return {**run["params"], "training": training}


def over_seeds(store: Store, runs: Sequence[Mapping[str, Any]], only: Collection[str] | None = None) -> dict[str, Any]:
    """Hypervolume of every method that all runs have (of those in `only`), and of every pair the difference, over their seeds.

    Returns `seeds`, `methods` (name -> Estimate), `each` (name -> hypervolume of each run), `differences` ((a, b) -> Estimate
    of a minus b; see `hierarchical`) and `attainment`: method -> share of the runs -> the surface [M, K] that so many of them
    attain (with 2 or 3 objectives).
    """
    first = runs[0]
    names = [set(store.points(run["run_id"]).method) for run in runs]
    methods = [name for name in store.methods(first["run_id"]).method if all(name in there for there in names)]
    methods = [name for name in methods if only is None or name in only]
    bootstrap = Bootstrap(first["prompts"], first["bootstrap_draws"], first["seed"])
    rewards = {method: [store.per_prompt(run["run_id"], method) for run in runs] for method in methods}
    volumes = {name: np.stack([_volumes(run, first, bootstrap) for run in each]) for name, each in rewards.items()}
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    return {
        "seeds": [run["training_seed"] for run in runs],
        "methods": {method: hierarchical(values, bootstrap) for method, values in volumes.items()},
        "each": {method: values[:, 0].tolist() for method, values in volumes.items()},
        "differences": {(a, b): hierarchical(volumes[a] - volumes[b], bootstrap) for a, b in pairs},
        "attainment": attainment(store, runs, (0.5, 1.0), only),
    }


def attainment(
    store: Store, runs: Sequence[Mapping[str, Any]], shares: Sequence[float], only: Collection[str] | None = None
) -> dict[str, dict[float, Array]]:
    """Return, per method that all runs have (of those in `only`), the surfaces [M, K] that at least these shares of runs attain.

    None beyond three objectives: `moocore` computes no others.
    """
    objectives = runs[0]["objectives"]
    means: dict[str, list[Array]] = {}
    for run in runs:
        points = store.points(run["run_id"])
        for method, own in points.groupby("method", sort=False):
            means.setdefault(str(method), []).append(own[[f"reward:{name}" for name in objectives]].to_numpy(float))
    drawn = shares if len(objectives) in (2, 3) else ()
    return {
        method: {share: frontier.attainment(each, share) for share in drawn}
        for method, each in means.items()
        if len(each) == len(runs) and (only is None or method in only)
    }


def against(store: Store, run: str, other: str) -> dict[str, Any]:
    """Compare two runs method by method: hypervolumes and their paired difference, `run` minus `other`.

    JSON-able. Raises `ClpError` when they cannot be compared or share no method.
    """
    comparable(store, run, other)
    first = store.run(run)
    bootstrap = Bootstrap(first["prompts"], first["bootstrap_draws"], first["seed"])
    shared = [name for name in store.points(run).method.unique() if name in set(store.points(other).method)]
    rows = []
    for method in shared:
        one, two = (_volumes(store.per_prompt(each, method), first, bootstrap) for each in (run, other))
        estimate = hierarchical((one - two)[None], bootstrap)
        rows.append(
            {
                "method": method, "hypervolume": float(one[0]), "hypervolume_against": float(two[0]),
                "difference": estimate.value, "interval": [estimate.low, estimate.high], "probability": estimate.probability,
            }
        )  # fmt: skip
    return {"run": run, "against": other, "methods": rows}


def _volumes(rewards: Array, run: Mapping[str, Any], bootstrap: Bootstrap) -> Array:
    return np.array([frontier.hypervolume(points, run["reference_point"]) for points in bootstrap.means(rewards)])
