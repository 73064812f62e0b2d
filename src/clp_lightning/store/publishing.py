"""Publication of a run: the new store is built beside the old one and swapped in."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa

from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError, make, plural
from clp_lightning.files import atomic, fingerprint, locked
from clp_lightning.store.earlier import objective_of_earlier_runs
from clp_lightning.store.resampling import Setting
from clp_lightning.store.results import COSTS, MONITORS, MethodResults, columns, quoted, read_results
from clp_lightning.store.schema import (
    CREATE,
    LASTING,
    OBJECTIVE_SINCE,
    SCHEMA_VERSION,
    TABLES,
    attach,
    copy_of,
    one_line,
    readable,
)
from clp_lightning.store.statistics import statistics

LIBRARIES = ("clp-lightning", "torch", "transformers", "lightning", "moocore", "numpy", "duckdb", "botocore")


def publish(results: Path | str, store: Path | str, config: Config, stages: pd.DataFrame | None = None) -> str:
    """Add the run whose results lie in `results/METHOD` to the store and return its run_id.

    `stages` are the last executions of the pipeline's stages: stage, started_at, seconds, peak_memory_mb.
    A method whose results are missing or unusable is left out; `methods.problem` says why.

    The new file is built beside `store` and swapped in; earlier runs are copied forward, from an older schema too. Identical
    inputs have the same run_id and replace their earlier rows. A file in the way that is no readable store is renamed to
    `NAME.TIME.set-aside`, never deleted. Raises `ClpError` when the reference policy has no results, the store was written by a
    newer version, the disk is full or another process writes to the store; the old store is then untouched.
    """
    results, store = Path(results), Path(store)
    found, problems = read_results(results, config)
    params = config.model_dump(mode="json")
    run_id = fingerprint(
        SCHEMA_VERSION, params, problems, *(f.parquet for f in found), *(f.summary for f in found)
    )  # fmt: skip
    frames = _frames(found, problems, config) | ({} if stages is None or stages.empty else {"stages": stages})
    with _rebuilding(store) as (connection, previous):
        _write(connection, run_id, frames, found, config, previous)
    return run_id


def record_decision(store: Path | str, decision: dict[str, Any]) -> None:
    """Add a row to the table `decisions` of a store that is there; otherwise as `publish`.

    It replaces a row about the same run, challenger and champion: a decision that was cut short is made again.
    """
    with _rebuilding(Path(store)) as (connection, previous):
        if previous is None:
            raise ClpError(f"{store} does not exist or is no store; run {make('repro')} to build it")
        _create(connection)
        _copy(connection, previous, [])
        connection.execute(
            "DELETE FROM decisions WHERE run_id = ? AND challenger = ? AND champion IS NOT DISTINCT FROM ?",
            [decision["run_id"], decision["challenger"], decision["champion"]],
        )
        _insert(connection, "decisions", pd.DataFrame([decision]))


def forget(store: Path | str, runs: Sequence[str]) -> None:
    """Remove runs from a store; decisions about them stay. Raises as `publish`."""
    with _rebuilding(Path(store)) as (connection, previous):
        if previous is None:
            raise ClpError(f"{store} does not exist or is no store; there is nothing to remove")
        _create(connection)
        _copy(connection, previous, runs)


@contextlib.contextmanager
def _rebuilding(store: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path | None]]:
    """Yield a connection to an empty file beside `store`, which takes its place, and the store as it is (None: no store).

    What is in the way and cannot be read is renamed, never deleted.
    """
    # a second publisher waits for the first: both build the same file beside the store
    with locked(store.parent), atomic(store) as beside:
        for wal in (_wal(beside), _wal(store)):  # of killed writers: DuckDB would replay it into a file it is not of
            wal.unlink(missing_ok=True)
        unreadable = store.exists() and not readable(store)
        try:
            with contextlib.closing(duckdb.connect(beside, config=_LIMITS)) as connection:
                yield connection, None if unreadable or not store.exists() else store
                connection.execute("CHECKPOINT")  # a full disk shows here, not when the connection closes
            with contextlib.closing(duckdb.connect()) as connection:
                attach(connection, beside)
        except duckdb.Error as error:
            _wal(beside).unlink(missing_ok=True)
            raise ClpError(
                f"cannot write {store}: {one_line(error)}; free space or fix permissions, then run again"
            ) from error
        if unreadable:
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
            os.rename(store, store.with_name(f"{store.name}.{stamp}.set-aside"))


# Millions of rows pass through; order within a table is by its columns, never by insertion.
_LIMITS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": "1GB", "preserve_insertion_order": False
}  # fmt: skip


def _frames(found: list[MethodResults], problems: dict[str, str], config: Config) -> dict[str, pd.DataFrame]:
    first = found[0].summary
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    setting = Setting(
        config.objectives, [config.evaluation.reference_point] * len(config.objectives), config.evaluation.bootstrap_draws,
        config.seed, config.training.alpha, found[0].groups, config.evaluation.weightings,
    )  # fmt: skip
    measured = statistics([f.sampled for f in found], setting)
    monitors = pd.concat([f.points.assign(method=f.method) for f in found], ignore_index=True)
    measured["points"] = measured["points"].merge(monitors, on=["method", "weighting_id"], validate="1:1")
    costs = {f.method: f.summary["cost"] for f in found}
    spent = [cost.get(key) or 0.0 for cost in costs.values() for key in ("train_seconds", "evaluate_seconds")]
    run = {
        "created_at": now, "published_at": now, "code_commit": _commit(), "params": config.model_dump_json(),
        "corpus_hash": first["corpus_hash"], "seed": first["seed"], "training_seed": first["training_seed"],
        "objectives": list(config.objectives), "normalization": json.dumps(first["normalization"]),
        "reference_point": setting.reference_point, "bootstrap_draws": config.evaluation.bootstrap_draws,
        "prompts": len(found[0].prompts), "versions": json.dumps(_versions()),
        "machine": f"{platform.machine()}, {plural(os.cpu_count() or 1, 'core')}", "duration_seconds": sum(spent),
        "alpha": config.training.alpha, "computed_on": json.dumps({
            "evaluation": first["computed_on"],
            "training": {f.method: cost["computed_on"] for f in found if "computed_on" in (cost := f.summary["cost"])},
        }),
    }  # fmt: skip
    methods = [
        {"method": name, "position": position, "problem": problems.get(name)}
        | {key: costs.get(name, {}).get(key) for key in COSTS}
        | {"weights_hash": next((f.summary.get("weights_hash") for f in found if f.method == name), None)}
        for position, name in enumerate(config.compared)
    ]
    curves = pd.concat([f.curve for f in found], ignore_index=True)
    return {"runs": pd.DataFrame([run]), "methods": pd.DataFrame(methods), "curves": curves, **measured}


def _write(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    frames: dict[str, pd.DataFrame],
    found: list[MethodResults],
    config: Config,
    previous: Path | None,
) -> None:
    _create(connection)
    if previous is not None:
        created = _copy(connection, previous, [run_id])
        frames["runs"]["created_at"] = created or frames["runs"]["created_at"]
    for table, frame in frames.items():
        _insert(connection, table, frame.assign(run_id=run_id))
    for f in found:
        _insert_rows(connection, run_id, f, config)


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    for statement in CREATE:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])


def _copy(connection: duckdb.DuckDBPyConnection, previous: Path, without: Sequence[str]) -> datetime.datetime | None:
    """Bring the rows of another store over, but for those of the runs `without`; returns when the first of these began."""
    version = attach(connection, previous, older=True)
    for table in TABLES:
        if query := copy_of(table, version):
            left_out = [] if table in LASTING else list(without)
            connection.execute(
                f"INSERT INTO {table} BY NAME FROM ({query}) WHERE NOT list_contains(?::VARCHAR[], run_id)", [left_out]
            )
    created = connection.execute(
        "SELECT min(created_at) FROM m.runs WHERE list_contains(?::VARCHAR[], run_id)", [list(without)]
    ).fetchone()
    connection.execute("DETACH m")
    if version < OBJECTIVE_SINCE:
        for table, frame in objective_of_earlier_runs(connection).items():
            _insert(connection, table, frame)
    return created[0] if created else None


def _insert(connection: duckdb.DuckDBPyConnection, table: str, frame: pd.DataFrame) -> None:
    connection.register("incoming", pa.Table.from_pandas(frame, preserve_index=False))
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")  # noqa: S608 - our own table names
    connection.unregister("incoming")


def _insert_rows(connection: duckdb.DuckDBPyConnection, run_id: str, found: MethodResults, config: Config) -> None:
    """Copy a method's per-prompt rows from its Parquet file; they never pass through Python."""
    weights, rewards, raw = (
        "[" + ", ".join(quoted(name) for name in columns(kind, config.objectives)) + "]"
        for kind in ("w", "reward", "raw")
    )
    if found.weightings is None:
        weights = "NULL"
    monitors = ", ".join(f"{quoted(f'monitor:{name}')} AS {name}" for name in MONITORS)
    connection.execute(
        f"""INSERT INTO results BY NAME
            SELECT ? AS run_id, ? AS method, weighting_id, {weights} AS weighting, CAST(prompt_id AS VARCHAR) AS prompt_id,
                   response, {rewards} AS rewards, {raw} AS raw, {monitors} FROM read_parquet(?)""",  # noqa: S608
        [run_id, found.method, str(found.parquet)],
    )
    if found.method == REFERENCE:
        connection.execute(
            """INSERT INTO prompts BY NAME
               SELECT DISTINCT ? AS run_id, CAST(prompt_id AS VARCHAR) AS prompt_id, document, reference_summary, "group"
               FROM read_parquet(?)""",
            [run_id, str(found.parquet)],
        )


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _commit() -> str | None:
    command = ["git", "describe", "--match=NONE", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
