"""The store's tables, and how a file is opened and checked. A change of any table needs another `SCHEMA_VERSION`."""

from pathlib import Path

import duckdb

from clp_lightning.errors import ClpError

SCHEMA_VERSION = 1

# Lists are in the order of runs.objectives. A method without a weighting (the reference policy) has NULL there.
TABLES = {
    "runs": """
        run_id VARCHAR PRIMARY KEY,    -- fingerprint of the parameters and of all results
        created_at TIMESTAMP,          -- UTC, first publication
        published_at TIMESTAMP,        -- UTC, last publication: the latest run is the one published last
        code_commit VARCHAR,           -- NULL outside a git checkout; ends in -dirty with uncommitted changes
        params JSON, corpus_hash VARCHAR, seed BIGINT, objectives VARCHAR[],
        normalization JSON,            -- objective -> {mean, std} of its raw reward
        reference_point DOUBLE[], bootstrap_draws BIGINT, prompts BIGINT, versions JSON""",
    "methods": """
        run_id VARCHAR, method VARCHAR, position BIGINT, rollouts DOUBLE, generated_tokens DOUBLE, train_seconds DOUBLE,
        evaluate_seconds DOUBLE, stored_parameters DOUBLE, models DOUBLE""",
    "results": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], prompt_id VARCHAR, document VARCHAR,
        reference_summary VARCHAR, response VARCHAR, rewards DOUBLE[], raw DOUBLE[], rouge_l DOUBLE, coverage DOUBLE,
        kl DOUBLE, length DOUBLE, distinct_2 DOUBLE""",
    "points": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], rewards DOUBLE[], low DOUBLE[],
        high DOUBLE[], rouge_l DOUBLE, coverage DOUBLE, kl DOUBLE, length DOUBLE, distinct_2 DOUBLE""",
    "metrics": """
        run_id VARCHAR, method VARCHAR,
        metric VARCHAR,                -- hypervolume, dominated_share, steerability
        target VARCHAR,                -- NULL, the method whose points are dominated, the objective steered
        value DOUBLE, low DOUBLE, high DOUBLE""",
    "comparisons": """
        run_id VARCHAR, method_a VARCHAR, method_b VARCHAR, statistic VARCHAR,
        difference DOUBLE,             -- a minus b
        low DOUBLE, high DOUBLE, probability DOUBLE""",
}

# For people in a DuckDB shell: the latest run, names instead of positions.
VIEWS = {
    "latest": "SELECT * FROM runs ORDER BY published_at DESC, run_id LIMIT 1",
    "frontier": """
        SELECT p.method, p.weighting_id, l.objectives[k.i] AS objective, p.weighting[k.i] AS weight,
               p.rewards[k.i] AS reward, p.low[k.i] AS low, p.high[k.i] AS high
        FROM latest l JOIN points p USING (run_id), range(1, len(l.objectives) + 1) k(i)
        ORDER BY p.method, p.weighting_id, k.i""",
    "hypervolume": """
        SELECT m.method, m.value AS hypervolume, m.low, m.high, l.reference_point
        FROM latest l JOIN metrics m USING (run_id) WHERE m.metric = 'hypervolume' ORDER BY m.value DESC""",
    "texts": """
        SELECT r.prompt_id, r.document, r.reference_summary, r.method, r.weighting, r.response, r.rewards, r.length
        FROM latest l JOIN results r USING (run_id) ORDER BY r.prompt_id, r.method, r.weighting_id""",
}

CREATE = [
    "CREATE TABLE meta (schema_version BIGINT)",
    *(f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()),
    *(f"CREATE VIEW {name} AS {query}" for name, query in VIEWS.items()),
]


def attach(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Attach the store at `path` as `m`, read-only; `ClpError` when it is missing, no store or of another schema."""
    if not path.exists():
        raise ClpError(f"{path} does not exist yet; run `make repro` to build it")
    try:
        before = path.stat()
        connection.execute("ATTACH ? AS m (READ_ONLY)", [str(path)])
        blocks = connection.execute(
            "SELECT used_blocks * block_size FROM pragma_database_size() WHERE database_name = 'm'"
        ).fetchall()[0][0]
        # DuckDB itself notices a file that is cut short only when a query needs what is gone.
        if before.st_ino == path.stat().st_ino and before.st_size < blocks:
            raise duckdb.IOException("the file is cut short")
        version = connection.execute("SELECT schema_version FROM m.meta").fetchall()[0][0]
    except (duckdb.Error, IndexError, OSError) as error:
        raise not_a_store(path, error) from error
    if version != SCHEMA_VERSION:
        raise ClpError(
            f"{path} has the store schema {version}, this version of clp-lightning reads {SCHEMA_VERSION}; "
            "run `make repro` to build it anew (the old file is set aside)"
        )


def not_a_store(path: Path, error: Exception) -> ClpError:
    """Say in one sentence what DuckDB's error means for the user."""
    if "Could not set lock" in str(error):
        return ClpError(f"{path} is open for writing in another program; close it there, then try again")
    return ClpError(
        f"{path} is not a readable store of clp-lightning ({one_line(error)}); run `make repro` to build a new one "
        "(this file is set aside)"
    )


def one_line(error: Exception) -> str:
    """First line of an error's message."""
    return " ".join(str(error).split("\n")[0].split())
