"""Several runs of one store: which may be compared, and statistics over training seeds."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap, cluster_bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.seeds import Estimate, hierarchical
from clp_lightning.store.objective import MEASURES, at_weightings, measure, on_shared, swept
from clp_lightning.store.queries import REFERENCE, Store
from clp_lightning.store.resampling import Resampled, on_versions, per_prompt

# What two runs must share, and what to say where they do not.
AXES = {
    "objectives": "other objectives",
    "normalization": "another normalization of the rewards",
    "corpus_hash": "another corpus",
    "reference_point": "another reference point",
    "seed": "other test prompts (another seed)",
    "prompts": "another number of test prompts",
}
MEAN_OVER_WEIGHTINGS = (
    "mean_j",
    "mean_kl",
)  # differences in these are over the weightings that both methods were given


def obstacles(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return why two runs (rows of `Store.runs`) cannot be compared; an empty list if they can.

    What a run of an older version was computed on is not known, and no obstacle.
    """
    found = [what for key, what in AXES.items() if one[key] != other[key]]
    if _drawn(one) != _drawn(other):
        found.append("test prompts drawn in another way (evaluation.draw, evaluation.group)")
    here, there = one["computed_on"], other["computed_on"]
    if here and there and (parts := _differing(here, there)):
        found.append(f"another precision, device or number of threads ({'; '.join(parts)})")
    return found


def _drawn(run: Mapping[str, Any]) -> tuple[str, str | None]:
    """How a run's test prompts were drawn; older versions knew one way."""
    settings = run["params"].get("evaluation", {})
    return settings.get("draw", "random"), settings.get("group")


def _differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Say what two runs were computed on where it differs: the evaluation, or the training of a method that both have."""
    pairs = {"evaluated on": (here["evaluation"], there["evaluation"])}
    pairs |= {
        f"{name} trained on": (here["training"][name], there["training"][name])
        for name in here["training"].keys() & there["training"].keys()
    }
    return [f"{what} {theirs}, not {own}" for what, (own, theirs) in sorted(pairs.items()) if own != theirs]


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
    return _siblings(store, run)[0]


def left_out(store: Store, run: str | None = None) -> list[str]:
    """Say of each run that has the parameters of `run` but for its training seed why it is not among its `siblings`."""
    return [f"run {other['run_id']} is left out: it has {'; '.join(why)}" for other, why in _siblings(store, run)[1]]


def _siblings(store: Store, run: str | None) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], list[str]]]]:
    first = store.run(run)
    found, others = {first["training_seed"]: first}, []
    for other in store.each_run():
        if _apart_from_seed(other) != _apart_from_seed(first) or other["training_seed"] in found:
            continue
        if reasons := obstacles(first, other):
            others.append((other, reasons))
        else:
            found[other["training_seed"]] = other
    return list(found.values()), [(run, why) for run, why in others if run["training_seed"] not in found]


def _apart_from_seed(run: Mapping[str, Any]) -> dict[str, Any]:
    training = {key: value for key, value in run["params"].get("training", {}).items() if key != "seed"}
    return {**run["params"], "training": training}


def over_seeds(store: Store, runs: Sequence[Mapping[str, Any]], only: Collection[str] | None = None) -> dict[str, Any]:
    """Every measure of every method that all runs have (of those in `only`), and its difference of every pair, over seeds.

    Returns `seeds`, `methods` (name -> measure -> Estimate), `each` (name -> measure -> value of each run), `differences`
    ((a, b) -> measure -> Estimate of a minus b; see `hierarchical`), and `attainment` and `regularized_attainment`: method ->
    share of the runs -> the surface [M, K] that so many of them attain (with 2 or 3 objectives).
    """
    first = runs[0]
    names = [set(store.points(run["run_id"]).method) for run in runs]
    methods = [name for name in store.methods(first["run_id"]).method if all(name in there for there in names)]
    methods = [name for name in methods if only is None or name in only]
    bootstrap, tables = resampled(store, runs, methods)
    measures = _measures(tables, first)
    values = {
        name: {what: np.stack([_measured(what, table, name, first) for table in tables]) for what in measures}
        for name in methods
    }
    pairs = [(a, b) for i, a in enumerate(methods) for b in methods[i + 1 :]]
    return {
        "seeds": [run["training_seed"] for run in runs],
        "methods": {
            name: {what: hierarchical(each, bootstrap) for what, each in own.items()} for name, own in values.items()
        },
        "each": {name: {what: each[:, 0].tolist() for what, each in own.items()} for name, own in values.items()},
        "differences": {
            pair: {what: hierarchical(each, bootstrap) for what, each in _apart(pair, tables, values, first).items()}
            for pair in pairs
        },
        "attainment": attainment(store, runs, (0.5, 1.0), only),
        "regularized_attainment": attainment(store, runs, (0.5, 1.0), only, regularized=True),
    }


def resampled(
    store: Store, runs: Sequence[Mapping[str, Any]], methods: Sequence[str]
) -> tuple[Bootstrap, list[dict[str, Resampled]]]:
    """Return one bootstrap for all runs, and of each run its `methods` and the reference policy at the weightings."""
    first = runs[0]
    wanted = list(dict.fromkeys([REFERENCE, *methods]))
    found = [[store.sampled(run["run_id"], name) for name in wanted] for run in runs]
    alpha = _alpha(first)
    values = np.stack([per_prompt(each, alpha) for own in found for each in own])
    bootstrap = cluster_bootstrap(values, store.groups(first["run_id"]), first["bootstrap_draws"], first["seed"])
    versions = [on_versions(own, bootstrap)[0] for own in found]
    return bootstrap, [at_weightings(own) or {each.method: each for each in own} for own in versions]


def _alpha(run: Mapping[str, Any]) -> float:
    """The KL strength of a run's J; 0 of runs so old that they do not tell, of which no J is shown."""
    return 0.0 if run["alpha"] is None else float(run["alpha"])


def _measures(tables: Sequence[Mapping[str, Resampled]], first: Mapping[str, Any]) -> list[str]:
    """Return the measures that all runs have."""
    everything = [each for table in tables for each in table.values()]
    known = first["alpha"] is not None and all(each.weightings is not None for each in everything)
    frontiers = known and not any(swept(each, _alpha(first)) for each in everything)
    return [
        name
        for name in MEASURES
        if (known or name not in MEAN_OVER_WEIGHTINGS) and (frontiers or not name.startswith("regularized_"))
    ]


def _measured(what: str, table: Mapping[str, Resampled], method: str, first: Mapping[str, Any]) -> Array:
    return measure(what, table[method], table[REFERENCE], _alpha(first), first["reference_point"])


def _apart(
    pair: tuple[str, str],
    tables: Sequence[Mapping[str, Resampled]],
    values: Mapping[str, Mapping[str, Array]],
    first: Mapping[str, Any],
) -> dict[str, Array]:
    """Return how far the first method of a pair is ahead of the second, per measure [S, R]."""
    a, b = pair
    found = {}
    for what in values[a]:
        if what not in MEAN_OVER_WEIGHTINGS:
            found[what] = values[a][what] - values[b][what]
            continue
        shared = [on_shared(table[a], table[b]) for table in tables]
        both = [each for each in shared if each is not None]
        if len(both) == len(shared):
            at = [{a: one, b: other, REFERENCE: other} for one, other in both]
            found[what] = np.stack([_measured(what, t, a, first) - _measured(what, t, b, first) for t in at])
    return found


def attainment(
    store: Store,
    runs: Sequence[Mapping[str, Any]],
    shares: Sequence[float],
    only: Collection[str] | None = None,
    *,
    regularized: bool = False,
) -> dict[str, dict[float, Array]]:
    """Return, per method that all runs have (of those in `only`), the surfaces [M, K] that at least these shares of runs attain.

    With `regularized` of the vectors (1 - alpha) R - alpha KL. None beyond three objectives: `moocore` computes no others.
    """
    objectives = runs[0]["objectives"]
    means: dict[str, list[Array]] = {}
    for run in runs:
        points = store.points(run["run_id"], regularized=regularized)
        for method, own in points.groupby("method", sort=False):
            means.setdefault(str(method), []).append(own[[f"reward:{name}" for name in objectives]].to_numpy(float))
    drawn = shares if len(objectives) in (2, 3) else ()
    return {
        method: {share: frontier.attainment(each, share) for share in drawn}
        for method, each in means.items()
        if len(each) == len(runs) and (only is None or method in only)
    }


def against(store: Store, run: str, other: str) -> dict[str, Any]:
    """Compare two runs method by method, by mean J (at the KL strength of `run`), KL and hypervolume: `run` minus `other`.

    JSON-able. Raises `ClpError` when they cannot be compared or share no method.
    """
    comparable(store, run, other)
    first, second = store.run(run), store.run(other)
    there = set(store.points(other).method)
    shared = [str(name) for name in store.points(run).method.unique() if name in there]
    bootstrap, (one, two) = resampled(store, [first, second], shared)
    rows = []
    for method in shared:
        differences = {}
        for what in _measures([one, two], first):
            pair = on_shared(one[method], two[method]) if what in MEAN_OVER_WEIGHTINGS else (one[method], two[method])
            if pair is not None:
                here, theirs = (
                    measure(what, each, table[REFERENCE], _alpha(first), first["reference_point"])
                    for each, table in zip(pair, (one, two), strict=True)
                )
                estimate = hierarchical((here - theirs)[None], bootstrap)
                differences[what] = {"value": float(here[0]), "against": float(theirs[0])} | as_json(estimate)
        rows.append({"method": method, "measures": differences})
    return {"run": run, "against": other, "alpha": first["alpha"], "methods": rows}


def as_json(estimate: Estimate) -> dict[str, Any]:
    """Return a difference with its interval as JSON-able values."""
    return {
        "difference": estimate.value, "interval": [estimate.low, estimate.high], "probability": estimate.probability
    }  # fmt: skip
