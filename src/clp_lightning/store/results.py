"""The results that `publish` reads: checked where they lie, by DuckDB, so that their size is no matter of memory."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd

from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError, make
from clp_lightning.files import read_json
from clp_lightning.frontier import metrics as frontier

MONITORS = ("rouge_l", "coverage", "kl", "length", "distinct_2")
COSTS = (
    "rollouts", "generated_tokens", "train_seconds", "evaluate_seconds", "stored_parameters", "models",
    "forward_passes_per_token",
)  # fmt: skip
TEXTS = ("prompt_id", "group", "document", "reference_summary", "response")
# what methods of one run agree on
SHARED = ("objectives", "normalization", "corpus_hash", "seed", "training_seed", "computed_on")


class Sampled(NamedTuple):
    """A method's answers as numbers: `rewards` [N, P, K] and `kl` [N, P] (nats per answer, means over a prompt's samples).

    `weightings` [N, K] are None for a policy that takes none, which has N = 1.
    """

    method: str
    weightings: frontier.Array | None
    rewards: frontier.Array
    kl: frontier.Array


def sampled_query(objectives: int, schema: str = "main") -> str:
    """Return the query of a run's and a method's answers that `as_sampled` reads; several samples of a prompt are averaged."""
    each = ", ".join(f"avg(rewards[{k}]) AS r{k}" for k in range(1, objectives + 1))
    return f"""SELECT weighting_id, any_value(weighting) AS weighting, {each}, avg(kl) AS kl
               FROM {schema}.results WHERE run_id = ? AND method = ?
               GROUP BY weighting_id, prompt_id ORDER BY weighting_id, prompt_id"""  # noqa: S608 - numbers only


def as_sampled(rows: pd.DataFrame, method: str) -> Sampled:
    """Return the rows of `sampled_query`; raises `ClpError` when answers are missing."""
    points = max(1, rows.weighting_id.nunique())
    prompts, left = divmod(len(rows), points)
    if left or not prompts:
        raise ClpError(f"{method} has {len(rows)} answers, which are not the same number at each weighting")
    values = rows.drop(columns=["weighting_id", "weighting"]).to_numpy(float).reshape(points, prompts, -1)
    given = rows.weighting.iloc[::prompts]
    weightings = None if given.isna().any() else np.stack(given.to_list()).astype(float)
    return Sampled(method, weightings, values[..., :-1], values[..., -1])


@dataclasses.dataclass(frozen=True)
class MethodResults:
    """One method's folder: `points` one row per weighting (NaN where it takes none), rewards and KL, `prompts` and groups [P]."""

    method: str
    folder: Path
    summary: dict[str, Any]
    points: pd.DataFrame
    rewards: frontier.Array
    kl: frontier.Array
    prompts: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def parquet(self) -> Path:
        """The per-prompt rows, with columns as in docs/design.md."""
        return self.folder / "results.parquet"

    @property
    def curve(self) -> pd.DataFrame:
        """The training's curve, one row per step and value; none for a method that trains nothing."""
        file = self.folder / "training_curve.csv"
        wide = pd.read_csv(file) if file.is_file() else pd.DataFrame({"step": pd.Series(dtype=int)})
        return wide.melt("step", var_name="name").assign(method=self.method)

    @property
    def weightings(self) -> frontier.Array | None:
        """The weightings [N, K] of the points; None for a policy that takes none."""
        weights = self.points["weighting"]
        return None if weights.isna().any() else np.array(weights.tolist())

    @property
    def sampled(self) -> Sampled:
        """What the statistics are computed from."""
        return Sampled(self.method, self.weightings, self.rewards, self.kl)


def read_results(results: Path, config: Config) -> tuple[list[MethodResults], dict[str, str]]:
    """Read the reference policy's and every other method's results, in the order of params.yaml.

    Returns what can be compared, and for each method that cannot the reason, which names the stage to run: its folder is
    missing or broken, a reward is not a number, or it was made from other prompts, another normalization or another
    corpus than the reference policy's. Raises `ClpError` when the reference policy itself has no usable results.
    """
    found, problems = [read_method(results / REFERENCE, REFERENCE, config.objectives)], {}
    for method in config.compared[1:]:
        try:
            found.append(alike(found[0], read_method(results / method, method, config.objectives)))
        except ClpError as error:
            problems[method] = str(error)
    return found, problems


def alike(first: MethodResults | None, other: MethodResults) -> MethodResults:
    """Return `other`; raises `ClpError` when it was not made from what `first` was made from, or on other prompts."""
    if first is None:
        return other
    for key in SHARED:
        if other.summary[key] != first.summary[key]:
            what = f"another {key} than {first.method}'s"
            if key == "computed_on":
                what = f"been computed on {other.summary[key]}, those of {first.method} on {first.summary[key]}"
            raise _problem(other.method, other.folder, what)
    if (other.prompts, other.groups) != (first.prompts, first.groups):
        raise _problem(other.method, other.folder, f"other prompts than {first.method}'s")
    return other


def read_method(folder: Path, method: str, objectives: tuple[str, ...]) -> MethodResults:
    """Read one method's results; raises `ClpError` that says what they lack and which stage to run."""
    remedy = f"run the stage evaluate of {method} ({make('repro')})"
    for name in ("results.parquet", "summary.json"):
        if not (folder / name).is_file():
            raise ClpError(f"{folder / name} is missing: method {method} has not been evaluated; {remedy}")
    summary = read_json(folder / "summary.json", remedy=remedy)
    if lacking := [key for key in (*SHARED, "cost") if not isinstance(summary, Mapping) or key not in summary]:
        raise _problem(method, folder, f"no {lacking[0]!r} in summary.json")
    if list(summary["objectives"]) != list(objectives):
        raise _problem(method, folder, f"the objectives {', '.join(summary['objectives'])}")
    with contextlib.closing(duckdb.connect()) as connection:
        try:
            connection.read_parquet(str(folder / "results.parquet")).create_view("rows")
            points, tensor, prompts, groups = _tensors(connection, method, folder, objectives)
        except (duckdb.Error, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ClpError(
                f"cannot read {folder / 'results.parquet'} of method {method}: {reason}; {remedy}"
            ) from error
    return MethodResults(method, folder, dict(summary), points, tensor[..., :-1], tensor[..., -1], prompts, groups)


def _tensors(
    connection: duckdb.DuckDBPyConnection, method: str, folder: Path, objectives: tuple[str, ...]
) -> tuple[pd.DataFrame, frontier.Array, tuple[str, ...], tuple[str, ...]]:
    """Return the points, rewards and KL [N, P, K + 1], prompts and their groups [P]."""
    weights, rewards, raw = (columns(kind, objectives) for kind in ("w", "reward", "raw"))
    monitors = [f"monitor:{name}" for name in MONITORS]
    there = {row[0] for row in connection.execute("DESCRIBE rows").fetchall()}
    if lacking := [name for name in ("weighting_id", *TEXTS, *weights, *rewards, *raw, *monitors) if name not in there]:
        raise _problem(method, folder, f"no column {lacking[0]!r}")
    measured = [*rewards, "monitor:kl"]
    finite = " AND ".join(f"isfinite({quoted(name)}) IS TRUE" for name in measured)
    count, good = connection.execute(f"SELECT count(*), count(*) FILTER (WHERE {finite}) FROM rows").fetchall()[0]  # noqa: S608
    if good < count or not count:
        raise _problem(method, folder, "rewards or KL that are missing or not finite" if count else "no rows")
    # Several samples of one prompt are one observation: prompts, not samples, are drawn by the bootstrap.
    per_prompt = connection.execute(
        f"SELECT {_each('avg', measured)} FROM rows GROUP BY weighting_id, prompt_id ORDER BY weighting_id, prompt_id"  # noqa: S608
    ).fetchnumpy()
    ids = connection.execute("SELECT DISTINCT weighting_id FROM rows ORDER BY 1").fetchall()
    asked = connection.execute('SELECT DISTINCT prompt_id, "group" FROM rows ORDER BY 1').fetchall()
    prompts, groups = (tuple(row[i] for row in asked) for i in (0, 1))
    if [row[0] for row in ids] != list(range(len(ids))):
        raise _problem(method, folder, "weightings that are not numbered 0, 1, 2, ...")
    if len(set(prompts)) < len(prompts):
        raise _problem(method, folder, "a prompt in two groups")
    if len(per_prompt[rewards[0]]) != len(ids) * len(prompts):
        raise _problem(method, folder, "not every prompt at every weighting")
    tensor = np.stack([np.asarray(per_prompt[name]) for name in measured], axis=-1)
    points = connection.execute(
        f"""SELECT weighting_id, {_each("any_value", weights)}, {_each("avg", monitors)}
            FROM rows GROUP BY 1 ORDER BY 1"""  # noqa: S608
    ).df()
    weighting = points[weights].to_numpy(float)
    if np.isnan(weighting).any() and not np.isnan(weighting).all():
        raise _problem(method, folder, "weightings of which only some are known")
    lists = [None if np.isnan(row).any() else row.tolist() for row in weighting]
    points = points[["weighting_id"]].assign(
        weighting=pd.Series(lists, dtype=object), **{name: points[f"monitor:{name}"] for name in MONITORS}
    )
    return points, tensor.reshape(len(ids), len(prompts), len(measured)), prompts, groups


def columns(kind: str, objectives: tuple[str, ...]) -> list[str]:
    """Names of the columns of one kind, as in `reward:NAME`."""
    return [f"{kind}:{name}" for name in objectives]


def quoted(name: str) -> str:
    """Return a column's name as SQL wants it; objectives are checked to have no quotes."""
    return f'"{name}"'


def _each(function: str, names: list[str]) -> str:
    return ", ".join(f"{function}({quoted(name)}) AS {quoted(name)}" for name in names)


def _problem(method: str, folder: Path, what: str) -> ClpError:
    return ClpError(f"{folder}: the results of method {method} have {what}; run the stage evaluate of {method} again")
