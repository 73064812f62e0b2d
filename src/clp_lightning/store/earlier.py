"""What training maximizes, computed for runs that an older version published: their answers hold all that it needs."""

import contextlib
import json

import duckdb
import pandas as pd

from clp_lightning.errors import ClpError
from clp_lightning.store.objective import on_objective
from clp_lightning.store.resampling import Setting, resample
from clp_lightning.store.results import as_sampled, sampled_query

RUNS = """SELECT run_id, objectives, reference_point, bootstrap_draws, seed, alpha, params FROM runs r
          WHERE alpha IS NOT NULL AND NOT EXISTS (FROM objective o WHERE o.run_id = r.run_id)"""


def objective_of_earlier_runs(connection: duckdb.DuckDBPyConnection) -> dict[str, pd.DataFrame]:
    """Return rows of `objective`, `by_weighting`, `regularized`, `metrics` and `comparisons` for the runs that have none.

    A run with too few prompts for an interval stays without: what is shown of it has a dash there.
    """
    frames: dict[str, list[pd.DataFrame]] = {}
    for run, objectives, point, draws, seed, alpha, params in connection.execute(RUNS).fetchall():
        per_edge = json.loads(params).get("evaluation", {}).get("weightings", 2)
        setting = Setting(tuple(objectives), point, draws, seed, alpha, None, per_edge)
        methods = connection.execute(
            "SELECT method FROM methods WHERE run_id = ? AND problem IS NULL ORDER BY position", [run]
        ).fetchall()
        with contextlib.suppress(ClpError):
            found = [
                as_sampled(connection.execute(sampled_query(len(objectives)), [run, method]).df(), method)
                for (method,) in methods
            ]
            bootstrap, resampled, _ = resample(found, setting)
            for name, frame in on_objective(resampled, setting, bootstrap).items():
                frames.setdefault(name, []).append(frame.assign(run_id=run))
    return {name: pd.concat(each, ignore_index=True) for name, each in frames.items()}
