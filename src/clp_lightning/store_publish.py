"""Publication of a run: the new store is built beside the old one and swapped in."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa

from clp_lightning.config import Config
from clp_lightning.errors import ClpError
from clp_lightning.files import atomic, fingerprint
from clp_lightning.store_inputs import COSTS, MethodResults, read_results, statistics
from clp_lightning.store_schema import CREATE, SCHEMA_VERSION, TABLES, attach, one_line

LIBRARIES = ("clp-lightning", "torch", "transformers", "lightning", "moocore", "numpy", "duckdb", "botocore")


def publish(results: Path | str, store: Path | str, config: Config) -> str:
    """Add the run whose results lie in `results/METHOD` to the store and return its run_id.

    The new file is built beside `store` and swapped in; earlier runs are copied forward. Identical inputs have the same
    run_id and replace their earlier rows. A file in the way that is no readable store is renamed to
    `NAME.TIME.set-aside`, never deleted. Raises `ClpError` when results are missing or contradict each other, the disk
    is full or another process writes to the store; the old store is then untouched.
    """
    results, store = Path(results), Path(store)
    found = read_results(results, config)
    params = config.model_dump(mode="json")
    run_id = fingerprint(SCHEMA_VERSION, params, *(results / f.method / "results.parquet" for f in found), *(
        f.summary for f in found
    ))  # fmt: skip
    frames = _frames(found, config)
    with _one_publisher(store), atomic(store) as beside:
        for wal in (_wal(beside), _wal(store)):  # of killed writers: DuckDB would replay it into a file it is not of
            wal.unlink(missing_ok=True)
        unreadable = store.exists() and not _readable(store)
        try:
            with contextlib.closing(duckdb.connect(beside)) as connection:
                _write(connection, run_id, frames, None if unreadable else store)
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
    return run_id


def _frames(found: list[MethodResults], config: Config) -> dict[str, pd.DataFrame]:
    first = found[0].summary
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    run = {
        "created_at": now, "published_at": now, "code_commit": _commit(), "params": config.model_dump_json(),
        "corpus_hash": first["corpus_hash"], "seed": first["seed"], "objectives": list(config.objectives),
        "normalization": json.dumps(first["normalization"]),
        "reference_point": [config.evaluation.reference_point] * len(config.objectives),
        "bootstrap_draws": config.evaluation.bootstrap_draws, "prompts": found[0].rewards.shape[1],
        "versions": json.dumps(_versions()),
    }  # fmt: skip
    costs = [
        {"method": f.method, "position": i} | {c: f.summary["cost"].get(c) for c in COSTS} for i, f in enumerate(found)
    ]
    rows = pd.concat([f.rows for f in found], ignore_index=True).astype({"prompt_id": str})
    return {"runs": pd.DataFrame([run]), "methods": pd.DataFrame(costs), "results": rows, **statistics(found, config)}


def _write(
    connection: duckdb.DuckDBPyConnection, run_id: str, frames: dict[str, pd.DataFrame], previous: Path | None
) -> None:
    for statement in CREATE:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (?)", [SCHEMA_VERSION])
    if previous is not None and previous.exists():
        attach(connection, previous)
        for table in TABLES:
            connection.execute(f"INSERT INTO {table} SELECT * FROM m.{table} WHERE run_id <> ?", [run_id])  # noqa: S608
        created = connection.execute("SELECT created_at FROM m.runs WHERE run_id = ?", [run_id]).fetchone()
        if created:
            frames["runs"]["created_at"] = created[0]
        connection.execute("DETACH m")
    for table, frame in frames.items():
        connection.register("incoming", pa.Table.from_pandas(frame.assign(run_id=run_id), preserve_index=False))
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")  # noqa: S608 - our own table names
        connection.unregister("incoming")
    connection.execute("CHECKPOINT")  # a full disk shows here, not when the connection closes


@contextlib.contextmanager
def _one_publisher(store: Path) -> Iterator[None]:
    """Let a second publisher wait for the first: both build the same file beside the store."""
    store.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(store.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _readable(store: Path) -> bool:
    with contextlib.closing(duckdb.connect()) as connection:
        try:
            attach(connection, store)
            for table in TABLES:  # read everything: a block may be damaged
                connection.execute(f"SELECT bit_xor(hash(t)) FROM m.{table} t").fetchall()  # noqa: S608
        except duckdb.Error:
            return False
        except ClpError as error:
            if isinstance(error.__cause__, duckdb.Error) and "lock" in str(error.__cause__):
                raise  # in use elsewhere, not broken
            return False
    return True


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
