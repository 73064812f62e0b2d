"""The store's tables, and how a file is opened and checked. A change of any table needs another `SCHEMA_VERSION`."""

import contextlib
from pathlib import Path

import duckdb

from clp_lightning.errors import ClpError, make

SCHEMA_VERSION = 5
OBJECTIVE_SINCE = 5  # of earlier versions J is computed when their runs are brought over

# Lists are in the order of runs.objectives. A method without a weighting (the reference policy) has NULL there.
TABLES = {
    "runs": """
        run_id VARCHAR PRIMARY KEY,    -- fingerprint of the parameters and of all results
        created_at TIMESTAMP,          -- UTC, first publication
        published_at TIMESTAMP,        -- UTC, last publication: the latest run is the one published last
        code_commit VARCHAR,           -- NULL outside a git checkout; ends in -dirty with uncommitted changes
        params JSON, corpus_hash VARCHAR,
        seed BIGINT, training_seed BIGINT,  -- of data and reference policy; of policies and their samples
        objectives VARCHAR[],
        normalization JSON,            -- objective -> {mean, std} of its raw reward
        reference_point DOUBLE[], bootstrap_draws BIGINT, prompts BIGINT, versions JSON,
        machine VARCHAR,               -- processor and cores that published the run
        duration_seconds DOUBLE,       -- training and evaluation of all methods
        alpha DOUBLE,                  -- KL strength of J, where a weighting does not hold one of its own
        computed_on JSON               -- precision, device, threads: of the evaluation, and of each method's training""",
    "methods": """
        run_id VARCHAR, method VARCHAR, position BIGINT, rollouts DOUBLE, generated_tokens DOUBLE, train_seconds DOUBLE,
        evaluate_seconds DOUBLE, stored_parameters DOUBLE, models DOUBLE,
        forward_passes_per_token DOUBLE,  -- of the whole model, for one token of an answer
        weights_hash VARCHAR,          -- of the files that were evaluated
        problem VARCHAR                -- why a method of params.yaml has no results; NULL for those that have""",
    "prompts": """
        run_id VARCHAR, prompt_id VARCHAR, document VARCHAR, reference_summary VARCHAR,
        "group" VARCHAR                -- prompts that are alike (a service); NULL in runs of older versions""",
    "results": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], prompt_id VARCHAR,
        response VARCHAR, rewards DOUBLE[], raw DOUBLE[], rouge_l DOUBLE, coverage DOUBLE,
        kl DOUBLE, length DOUBLE, distinct_2 DOUBLE""",
    "curves": "run_id VARCHAR, method VARCHAR, step BIGINT, name VARCHAR, value DOUBLE",  # of the trainings
    "points": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], rewards DOUBLE[], low DOUBLE[],
        high DOUBLE[], rouge_l DOUBLE, coverage DOUBLE, kl DOUBLE, length DOUBLE, distinct_2 DOUBLE""",
    "metrics": """
        run_id VARCHAR, method VARCHAR,
        metric VARCHAR,                -- docs/metrics.md defines each
        target VARCHAR,                -- NULL, the other method, or the objective steered
        value DOUBLE, low DOUBLE, high DOUBLE""",
    "comparisons": """
        run_id VARCHAR, method_a VARCHAR, method_b VARCHAR, statistic VARCHAR,
        difference DOUBLE,             -- a minus b
        low DOUBLE, high DOUBLE, probability DOUBLE""",
    # what training maximizes, J = (1 - alpha) w.R - alpha KL, of every method at each weighting that any method was given;
    # the reference policy, which takes none, is at all of them
    "objective": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], alpha DOUBLE, kl DOUBLE,
        j DOUBLE, j_low DOUBLE, j_high DOUBLE,
        regret DOUBLE, regret_low DOUBLE, regret_high DOUBLE  -- what the best method there has more""",
    "by_weighting": """
        run_id VARCHAR, method_a VARCHAR, method_b VARCHAR, weighting DOUBLE[],
        difference DOUBLE,             -- in J, a minus b
        low DOUBLE, high DOUBLE, probability DOUBLE""",
    # (1 - alpha) R - alpha KL; none where weightings are KL strengths
    "regularized": """
        run_id VARCHAR, method VARCHAR, weighting_id BIGINT, rewards DOUBLE[], low DOUBLE[], high DOUBLE[]""",
    # the last execution of each stage that the run rests on
    "stages": """
        run_id VARCHAR, stage VARCHAR, started_at TIMESTAMP, seconds DOUBLE,
        peak_memory_mb DOUBLE          -- of its process; NULL where the system does not tell""",
    # whether a challenger took the place of the champion, or of the reference policy where champion is NULL
    "decisions": """
        run_id VARCHAR, decided_at TIMESTAMP, method VARCHAR, challenger VARCHAR, champion VARCHAR,
        promoted BOOLEAN, reasons VARCHAR[],
        statistic VARCHAR,             -- what decided; docs/metrics.md defines each
        value DOUBLE, other_value DOUBLE,  -- the challenger's, and that of what it was compared with
        difference DOUBLE, low DOUBLE, high DOUBLE,
        probability DOUBLE,            -- that the challenger's is the larger one
        worst_case DOUBLE[],           -- per objective, its lowest mean reward over the weightings
        worst_case_fall DOUBLE[],      -- the champion's minus the challenger's; NULL without a champion
        kl DOUBLE, length_ratio DOUBLE, prompts BIGINT, rule JSON""",
}

# How the tables of each readable version come over, from the store attached as m; the newest as they are. What training
# maximizes is computed then from the answers (store/earlier.py).
_V4: dict[str, str | None] = {
    "runs": """SELECT *, TRY_CAST(params->'training'->>'alpha' AS DOUBLE) AS alpha, NULL AS computed_on FROM m.runs""",
    "prompts": 'SELECT *, NULL AS "group" FROM m.prompts',
    "objective": None,
    "by_weighting": None,
    "regularized": None,
    "decisions": """SELECT * EXCLUDE (hypervolume, champion_hypervolume), 'hypervolume' AS statistic, hypervolume AS value,
                    champion_hypervolume AS other_value, NULL AS prompts FROM m.decisions""",
}
_V1 = _V4 | {
    "methods": "SELECT *, NULL AS forward_passes_per_token, NULL AS weights_hash, NULL AS problem FROM m.methods",
    "runs": """SELECT *, NULL AS training_seed, NULL AS machine, NULL AS duration_seconds,
               TRY_CAST(params->'training'->>'alpha' AS DOUBLE) AS alpha, NULL AS computed_on FROM m.runs""",
    "prompts": """SELECT DISTINCT run_id, prompt_id, document, reference_summary, NULL AS "group" FROM m.results
                  WHERE method = 'reference' ORDER BY ALL""",
    "results": "SELECT * EXCLUDE (document, reference_summary) FROM m.results",
    "curves": None,
    "decisions": None,
    "stages": None,
}
MIGRATIONS: dict[int, dict[str, str | None]] = {
    SCHEMA_VERSION: {}, 4: _V4, 3: _V4 | {"stages": None}, 2: _V4 | {"decisions": None, "stages": None}, 1: _V1,
}  # fmt: skip
LASTING = ("decisions",)  # tables whose rows stay when a run is published anew


def copy_of(table: str, version: int) -> str | None:
    """Return the query that reads `table` of a store of `version`, attached as m; None where there is none."""
    return MIGRATIONS[version].get(table, f"SELECT * FROM m.{table}")  # noqa: S608 - our own table names


# The one definition of Pareto dominance in SQL: nowhere worse, somewhere better.
_BETTER = (
    "{0}.rewards <> {1}.rewards AND len(list_filter(list_zip({0}.rewards, {1}.rewards), lambda p: p[1] < p[2])) = 0"
)

# For people in a DuckDB shell: the latest run, names instead of positions.
VIEWS = {
    "latest": "SELECT * FROM runs ORDER BY published_at DESC, run_id LIMIT 1",
    "frontier": """
        SELECT p.method, p.weighting_id, l.objectives[k.i] AS objective, p.weighting[k.i] AS weight,
               p.rewards[k.i] AS reward, p.low[k.i] AS low, p.high[k.i] AS high
        FROM latest l JOIN points p USING (run_id), range(1, len(l.objectives) + 1) k(i)
        ORDER BY p.method, p.weighting_id, k.i""",
    "j": """
        SELECT o.method, o.weighting_id, o.weighting, o.j, o.j_low, o.j_high, o.regret, o.kl
        FROM latest l JOIN objective o USING (run_id) ORDER BY o.weighting, o.j DESC""",
    "hypervolume": """
        SELECT m.method, m.value AS hypervolume, m.low, m.high, l.reference_point
        FROM latest l JOIN metrics m USING (run_id) WHERE m.metric = 'hypervolume' ORDER BY m.value DESC""",
    "texts": """
        SELECT r.prompt_id, p.document, p.reference_summary, r.method, r.weighting, r.response, r.rewards, r.length
        FROM latest l JOIN results r USING (run_id) JOIN prompts p USING (run_id, prompt_id)
        ORDER BY r.prompt_id, r.method, r.weighting_id""",
    "costs": """
        SELECT m.* EXCLUDE (run_id, position) FROM latest l JOIN methods m USING (run_id) ORDER BY m.position""",
    # every run's points; those that no other point of their method dominates, and whether any method's point does
    "nondominated": """
        SELECT run_id, method, weighting_id, weighting, rewards,
               NOT EXISTS (FROM points b WHERE b.run_id = a.run_id AND dominates(b.rewards, a.rewards)) AS of_all_methods
        FROM points a
        WHERE NOT EXISTS (
            FROM points b WHERE b.run_id = a.run_id AND b.method = a.method AND dominates(b.rewards, a.rewards))
        ORDER BY run_id, method, weighting_id""",
    # the share of B's points that at least one of A's dominates
    "dominance": """
        SELECT run_id, x.method AS method_a, b.method AS method_b,
               avg(CASE WHEN EXISTS (FROM points a WHERE a.run_id = b.run_id AND a.method = x.method
                                     AND dominates(a.rewards, b.rewards)) THEN 1 ELSE 0 END) AS share
        FROM points b JOIN (SELECT DISTINCT run_id, method FROM points) x USING (run_id)
        WHERE x.method <> b.method GROUP BY ALL ORDER BY ALL""",
}

CREATE = [
    "CREATE TABLE meta (schema_version BIGINT)",
    # Pareto dominance: nowhere worse, somewhere better
    "CREATE MACRO dominates(a, b) AS a <> b AND len(list_filter(list_zip(a, b), lambda p: p[1] < p[2])) = 0",
    *(f"CREATE TABLE {name} ({columns}\n)" for name, columns in TABLES.items()),
    *(f"CREATE VIEW {name} AS {query}" for name, query in VIEWS.items()),
]


def attach(connection: duckdb.DuckDBPyConnection, path: Path, *, older: bool = False) -> int:
    """Attach the store at `path` as `m`, read-only, and return its schema version.

    Raises `ClpError` when it is missing, no store or of another schema; with `older` those that can be brought over are
    welcome.
    """
    if not path.exists():
        raise ClpError(f"{path} does not exist yet; run {make('repro')} to build it")
    try:
        before = path.stat()
        connection.execute("ATTACH ? AS m (READ_ONLY)", [str(path)])
        blocks = connection.execute(
            "SELECT used_blocks * block_size FROM pragma_database_size() WHERE database_name = 'm'"
        ).fetchall()[0][0]
        # DuckDB itself notices a file that is cut short only when a query needs what is gone.
        if before.st_ino == path.stat().st_ino and before.st_size < blocks:
            raise duckdb.IOException("the file is cut short")
        version = int(connection.execute("SELECT schema_version FROM m.meta").fetchall()[0][0])
    except (duckdb.Error, IndexError, OSError) as error:
        raise not_a_store(path, error) from error
    if version > SCHEMA_VERSION:
        raise NewerStoreError(
            f"{path} was written by a newer clp-lightning (store schema {version}, this one reads {SCHEMA_VERSION}); "
            f"upgrade with {make('setup', 'pip install --upgrade clp-lightning')}, or move the file away and run {make('repro')}"
        )
    if version < SCHEMA_VERSION and not (older and version in MIGRATIONS):
        raise ClpError(
            f"{path} has the older store schema {version}, this clp-lightning reads {SCHEMA_VERSION}; run {make('repro')} or "
            "`clp stage publish` to bring it up to date, its runs are kept"
        )
    return version


class NewerStoreError(ClpError):
    """A store that a newer version wrote: never replaced, never set aside."""


def readable(store: Path) -> bool:
    """Whether all of a store can be read; raises `ClpError` for one that is in use, or of a newer version."""
    with contextlib.closing(duckdb.connect()) as connection:
        try:
            version = attach(connection, store, older=True)
            for table in TABLES:  # read everything: a block may be damaged
                if query := copy_of(table, version):
                    connection.execute(f"SELECT bit_xor(hash(t)) FROM ({query}) t").fetchall()  # noqa: S608
        except NewerStoreError:
            raise
        except duckdb.Error:
            return False
        except ClpError as error:
            if isinstance(error.__cause__, duckdb.Error) and "lock" in str(error.__cause__):
                raise  # in use elsewhere, not broken
            return False
    return True


def not_a_store(path: Path, error: Exception) -> ClpError:
    """Say in one sentence what DuckDB's error means for the user."""
    if "Could not set lock" in str(error):
        return ClpError(f"{path} is open for writing in another program; close it there, then try again")
    return ClpError(
        f"{path} is not a readable store of clp-lightning ({one_line(error)}); run {make('repro')} to build a new one "
        "(this file is set aside)"
    )


def one_line(error: Exception) -> str:
    """First line of an error's message."""
    return " ".join(str(error).split("\n")[0].split())
