"""What `publish` writes, before it is SQL: the checked results of every method, and the statistics of a run."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning import frontier
from clp_lightning.bootstrap import Bootstrap
from clp_lightning.config import Config
from clp_lightning.errors import ClpError
from clp_lightning.files import read_json

REFERENCE = "reference"
MONITORS = ("rouge_l", "coverage", "kl", "length", "distinct_2")
COSTS = ("rollouts", "generated_tokens", "train_seconds", "evaluate_seconds", "stored_parameters", "models")
TEXTS = ("prompt_id", "document", "reference_summary", "response")
SHARED = ("objectives", "normalization", "corpus_hash", "seed")  # what all methods of one run must agree on


@dataclasses.dataclass(frozen=True)
class MethodResults:
    """One method's folder: `rows` as in docs/design.md, `points` one row per weighting, `rewards` [N, P, K]."""

    method: str
    summary: dict[str, Any]
    rows: pd.DataFrame
    points: pd.DataFrame
    rewards: frontier.Array


def read_results(results: Path, config: Config) -> list[MethodResults]:
    """Read the reference policy's and every configured method's results, in that order.

    Raises `ClpError` that names the method and the stage to run when a folder is missing, broken, or was made from
    other prompts, another normalization or another corpus than the first.
    """
    found = [_read(results / method, method, config.objectives) for method in (REFERENCE, *config.methods)]
    first = found[0]
    for other in found[1:]:
        for key in SHARED:
            if other.summary[key] != first.summary[key]:
                raise _problem(other.method, results / other.method, f"another {key} than {first.method}'s")
        if other.rewards.shape[1] != first.rewards.shape[1] or set(other.rows.prompt_id) != set(first.rows.prompt_id):
            raise _problem(other.method, results / other.method, f"other prompts than {first.method}'s")
    return found


def statistics(found: list[MethodResults], config: Config) -> dict[str, pd.DataFrame]:
    """Points, metrics and comparisons of a run with 95 % intervals from one paired bootstrap over prompts.

    Returns tidy frames: `points` (lists in the order of the objectives), `metrics` (method, metric, target, value, low,
    high) and `comparisons` (method_a minus method_b; `probability` is the share of resamples in which a is ahead, ties
    count half). The intervals cover the choice of prompts, not the spread between training runs. Steerability has no
    interval: resamples of a perfect order are nearly all less than perfect, so that theirs would not hold the value.
    """
    objectives, reference_point = config.objectives, [config.evaluation.reference_point] * len(config.objectives)
    bootstrap = Bootstrap(found[0].rewards.shape[1], config.evaluation.bootstrap_draws, config.seed)
    means = {f.method: bootstrap.means(f.rewards) for f in found}  # [R, N, K], the first of all prompts
    points = pd.concat([_points(f, means[f.method], bootstrap) for f in found], ignore_index=True)

    volumes = {m: np.array([frontier.hypervolume(p, reference_point) for p in means[m]]) for m in means}
    metrics: list[tuple[Any, ...]] = []
    for m, volume in volumes.items():
        metrics.append((m, "hypervolume", None, volume[0], *bootstrap.interval(volume)))
    for a, b in itertools.permutations(means, 2):
        shares = [frontier.dominated_share(p, q) for p, q in zip(means[a], means[b], strict=True)]
        metrics.append((a, "dominated_share", b, shares[0], *bootstrap.percentiles(shares)))
    for f in found:
        if f.points.weighting.notna().all() and len(f.points) > 1:
            weights = np.array(f.points.weighting.tolist())  # [N, K]
            for k, objective in enumerate(objectives):
                tau = frontier.steerability(weights[:, k], means[f.method][0, :, k])
                metrics.append((f.method, "steerability", objective, tau, None, None))

    comparisons = []
    for a, b in itertools.combinations(means, 2):
        ahead = volumes[a] - volumes[b]
        row = (ahead[0], *bootstrap.interval(ahead), bootstrap.probability(ahead))
        comparisons.append((a, b, "hypervolume", *row))
    return {
        "points": points,
        "metrics": pd.DataFrame(metrics, columns=["method", "metric", "target", "value", "low", "high"]),
        "comparisons": pd.DataFrame(
            comparisons, columns=["method_a", "method_b", "statistic", "difference", "low", "high", "probability"]
        ),
    }


def _points(found: MethodResults, means: frontier.Array, bootstrap: Bootstrap) -> pd.DataFrame:
    ends = np.apply_along_axis(lambda values: np.array(bootstrap.interval(values)), 0, means)  # [2, N, K]
    low, high = ends.tolist()
    return found.points.assign(method=found.method, rewards=means[0].tolist(), low=low, high=high)


def _read(folder: Path, method: str, objectives: tuple[str, ...]) -> MethodResults:
    remedy = f"run the stage evaluate@{method} (`make repro`)"
    for name in ("results.parquet", "summary.json"):
        if not (folder / name).is_file():
            raise ClpError(f"{folder / name} is missing: method {method} has not been evaluated; {remedy}")
    summary = read_json(folder / "summary.json", remedy=remedy)
    try:
        rows = pd.read_parquet(folder / "results.parquet")
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        reason = " ".join(str(error).split())
        raise ClpError(f"cannot read {folder / 'results.parquet'} of method {method}: {reason}; {remedy}") from error
    weights, rewards, raw = ([f"{kind}:{name}" for name in objectives] for kind in ("w", "reward", "raw"))
    monitors = [f"monitor:{name}" for name in MONITORS]
    needed = ["weighting_id", *TEXTS, *weights, *rewards, *raw, *monitors]
    if lacking := [name for name in needed if name not in rows.columns]:
        raise _problem(method, folder, f"no column {lacking[0]!r}")
    if lacking := [key for key in (*SHARED, "cost") if not isinstance(summary, Mapping) or key not in summary]:
        raise _problem(method, folder, f"no {lacking[0]!r} in summary.json")
    if list(summary["objectives"]) != list(objectives):
        raise _problem(method, folder, f"the objectives {', '.join(summary['objectives'])}")

    rows = rows.sort_values(["weighting_id", "prompt_id"], kind="stable", ignore_index=True)
    if rows.empty or not np.isfinite(rows[rewards].to_numpy(float)).all():
        raise _problem(method, folder, "rewards that are missing or not finite" if len(rows) else "no rows")
    # Several samples of one prompt are one observation: prompts, not samples, are drawn by the bootstrap.
    per_prompt = rows.groupby(["weighting_id", "prompt_id"])[rewards].mean()
    ids, prompts = rows.weighting_id.unique(), rows.prompt_id.unique()
    if len(per_prompt) != len(ids) * len(prompts):
        raise _problem(method, folder, "not every prompt at every weighting")
    weighting = rows.groupby("weighting_id")[weights].first()
    if weighting.isna().to_numpy().any() and weighting.notna().to_numpy().any():
        raise _problem(method, folder, "weightings of which only some are known")
    points = rows.groupby("weighting_id")[monitors].mean().rename(columns=dict(zip(monitors, MONITORS, strict=True)))
    points.insert(0, "weighting", lists(weighting))
    rows = rows[["weighting_id", *TEXTS]].assign(
        method=method,
        weighting=lists(rows[weights]),
        rewards=lists(rows[rewards]),
        raw=lists(rows[raw]),
        **{name: rows[f"monitor:{name}"] for name in MONITORS},
    )
    tensor = per_prompt.to_numpy(float).reshape(len(ids), len(prompts), len(objectives))
    return MethodResults(method, dict(summary), rows, points.reset_index(), tensor)


def lists(columns: pd.DataFrame) -> pd.Series:
    """Turn the columns into one column of lists; a row without any value becomes None."""
    values = [None if np.isnan(row).all() else row.tolist() for row in columns.to_numpy(float)]
    return pd.Series(values, index=columns.index, dtype=object)


def _problem(method: str, folder: Path, what: str) -> ClpError:
    return ClpError(f"{folder}: the results of method {method} have {what}; run the stage evaluate@{method} again")
