"""The store on real DuckDB files: what is published, what a reader sees, what a failure leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from locations import REPOSITORY
from results_factory import config, write_method, write_results

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.store.queries import Store, forget, publish
from clp_lightning.store.schema import CREATE, SCHEMA_VERSION

CONFIG = config()


def contents(path: Path) -> dict[str, pd.DataFrame]:
    with duckdb.connect(path, read_only=True) as connection:
        names = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY ALL").df() for name in names}


def test_means_are_the_known_truth_and_intervals_hold_them(published):
    store = Store(published / "frontier.duckdb")
    points = store.points(store.run()["run_id"])
    assert points.method.unique().tolist() == ["reference", "clp-full", "rewarded-soups"]
    full = points[points.method == "clp-full"]
    # five weightings 0, 1/4, ... 1 on a circle of radius 1: (sqrt(w), sqrt(1 - w))
    w = np.array([0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(full["w:informativeness"], w)
    np.testing.assert_allclose(full["reward:informativeness"], np.sqrt(w), atol=1e-12)
    np.testing.assert_allclose(full["reward:brevity"], np.sqrt(1 - w), atol=1e-12)
    for name in ("informativeness", "brevity"):
        assert (points[f"low:{name}"] < points[f"reward:{name}"]).all()
        assert (points[f"reward:{name}"] < points[f"high:{name}"]).all()
    reference = points[points.method == "reference"].iloc[0]
    assert np.isnan(reference["w:informativeness"])
    assert reference["reward:brevity"] == pytest.approx(0)
    assert full["kl"].tolist() == [1.5] * 5


def test_metrics_and_comparisons_are_the_known_truth(published):
    store = Store(published / "frontier.duckdb")
    run = store.run()["run_id"]
    metrics = store.metrics(run).set_index(["method", "metric", "target"])["value"].sort_index()
    circle = np.sqrt(np.array([[i / 4, 1 - i / 4] for i in range(5)]))
    volume = {"reference": 9.0}  # a square with the corners (-3, -3) and (0, 0)
    volume |= {m: frontier.hypervolume(r * circle, [-3, -3]) for m, r in (("clp-full", 1.0), ("rewarded-soups", 0.6))}
    for method, expected in volume.items():
        assert metrics.xs((method, "hypervolume")).item() == pytest.approx(expected)
    assert metrics["clp-full", "dominated_share", "rewarded-soups"] == 1
    assert metrics["rewarded-soups", "dominated_share", "clp-full"] == 0
    assert metrics["clp-full", "steerability", "brevity"] == 1
    # gains are (sqrt(w), sqrt(1 - w)) times the reach, which cancels: at 1/4 the shares are 1 and sqrt(3) of their sum, at
    # 1/2 and the corners what was asked for, so the mean distance is 2/5 of 1 / (1 + sqrt(3)) - 1/4
    off = 2 / 5 * (1 / (1 + 3**0.5) - 1 / 4)
    for method in ("clp-full", "rewarded-soups"):
        assert metrics.xs((method, "tradeoff_distance")).item() == pytest.approx(off)
        assert metrics.xs((method, "cvar")).item() < metrics.xs((method, "mean_inner_product")).item()
        assert metrics.xs((method, "reward_covariance")).item() > 0
    # the reference policy gains nothing anywhere: equal parts, on average (1/2 + 1/4 + 0 + 1/4 + 1/2) / 5 away
    assert metrics.xs(("reference", "tradeoff_distance")).item() == pytest.approx(0.3)
    comparisons = store.comparisons(run)
    pairs = comparisons[comparisons.statistic == "hypervolume"].set_index(["method_a", "method_b"])
    pair = pairs.loc[("clp-full", "rewarded-soups")]
    assert pair.difference == pytest.approx(volume["clp-full"] - volume["rewarded-soups"])
    assert pair.low < pair.difference < pair.high
    assert pairs.loc[("reference", "clp-full")].probability < 1e-6
    assert len(pairs) == 3


def test_the_run_states_what_reproduces_its_axes(published):
    run = Store(published / "frontier.duckdb").run()
    assert run["objectives"] == ["informativeness", "brevity"]
    assert run["reference_point"] == [-3, -3]
    assert run["normalization"] == {name: {"mean": 1.0, "std": 2.0} for name in run["objectives"]}
    assert run["params"] == json.loads(CONFIG.model_dump_json())
    assert (run["seed"], run["corpus_hash"], run["prompts"], run["bootstrap_draws"]) == (0, "c0ffee", 24, 200)
    assert run["versions"]["duckdb"] == duckdb.__version__


def test_texts_documents_and_search(published):
    store = Store(published / "frontier.duckdb")
    run = store.run()["run_id"]
    assert len(store.documents(run)) == 24
    # 24 prompts cycle through six names: four of them are StartInstance, whatever the case of the search
    assert len(store.documents(run, "sTARTinstance")) == 4
    assert store.documents(run, "%' OR 1=1 --").empty
    assert store.documents(run, "%").empty
    texts = store.texts(run, "service-004")
    assert texts.groupby("method").size().to_dict() == {"reference": 1, "clp-full": 5, "rewarded-soups": 5}
    assert texts.response.iloc[1] == "Creates the resource [clp-full]"
    np.testing.assert_allclose(texts["raw:brevity"], 2 * texts["reward:brevity"] + 1)


def test_views_read_plainly_in_a_duckdb_shell(published):
    with duckdb.connect(published / "frontier.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT method, objective, weight, reward FROM frontier WHERE weight = 1").fetchall()
        assert [(m, o, round(r, 9)) for m, o, _, r in rows] == [
            ("clp-full", "brevity", 1.0),
            ("clp-full", "informativeness", 1.0),
            ("rewarded-soups", "brevity", 0.6),
            ("rewarded-soups", "informativeness", 0.6),
        ]
        assert connection.execute("SELECT method FROM hypervolume").fetchall()[0] == ("clp-full",)
        assert connection.execute("SELECT count(*) FROM texts").fetchone() == (24 * 11,)
        assert connection.execute("SELECT count(*) FROM latest").fetchone() == (1,)


def test_publishing_the_same_twice_changes_nothing_but_the_time(project):
    store = project / "frontier.duckdb"
    before = contents(store)
    publish(project / "results", store, CONFIG)
    after = contents(store)
    for tables in (before, after):
        for name in ("runs", "latest"):
            tables[name] = tables[name].drop(columns=["published_at", "code_commit"])
    assert before.keys() == after.keys()
    for name, frame in before.items():
        pd.testing.assert_frame_equal(frame, after[name])


def test_runs_stay_side_by_side_and_the_last_published_is_the_latest(project):
    store = Store(project / "frontier.duckdb")
    first = store.run()["run_id"]
    identity, points = store.identity(), store.points(first)
    write_results(project / "results", CONFIG, seed=100)
    second = publish(project / "results", store.path, CONFIG)
    assert store.identity() != identity
    assert store.runs().run_id.tolist() == [second, first]
    pd.testing.assert_frame_equal(store.points(first), points)
    assert not store.points(second).equals(points)
    write_results(project / "results", CONFIG)  # back to the first results
    assert publish(project / "results", store.path, CONFIG) == first
    assert store.runs().run_id.tolist() == [first, second]
    with pytest.raises(ClpError, match=r"has no run nonsense; it has"):
        store.run("nonsense")


def test_three_objectives_and_several_samples_of_a_prompt(tmp_path):
    rule = {"kind": "brevity", "min_words": 3}
    three = config(rewards={name: rule for name in ("a", "b", "c")})
    write_results(tmp_path / "results", three)
    path = tmp_path / "results" / "clp-full" / "results.parquet"
    rows = pd.read_parquet(path)
    pd.concat([rows, rows]).to_parquet(path)  # two samples: the prompts' means are the same
    store = Store(tmp_path / "frontier.duckdb")
    run = publish(tmp_path / "results", store.path, three)
    points = store.points(run)
    assert points.groupby("method").size().to_dict() == {"reference": 1, "clp-full": 15, "rewarded-soups": 15}
    full = points[points.method == "clp-full"]
    np.testing.assert_allclose(full["reward:c"], np.sqrt(full["w:c"]), atol=1e-12)
    assert len(store.texts(run, "service-000")) == 1 + 2 * 15 + 15


def test_steering_between_the_points_of_the_grid_is_measured(tmp_path):
    between = config().evaluation.model_dump() | {"off_grid": 3}
    parameters = config(evaluation=between)
    run = publish(write_results(tmp_path / "results", parameters), tmp_path / "frontier.duckdb", parameters)
    store = Store(tmp_path / "frontier.duckdb")
    metrics, points = store.metrics(run), store.points(run)
    # the factory's rewards at w are reach sqrt(w): what the best v of the grid has more in w.R, sum w (sqrt(v) - sqrt(w))
    own = points[points.method == "clp-full"]
    w = own[[f"w:{name}" for name in parameters.objectives]].to_numpy()
    off = ~np.isclose(w * 4, np.round(w * 4)).all(1)
    assert off.sum() == 3 and len(w) == 8
    expected = np.mean([max(x @ np.sqrt(v) for v in w[~off]) - x @ np.sqrt(x) for x in w[off]])
    row = metrics[(metrics.method == "clp-full") & (metrics.metric == "off_grid_regret")].iloc[0]
    assert row.value == pytest.approx(expected, abs=1e-9) and row.low < row.value < row.high
    assert "off_grid_regret" not in set(metrics[metrics.method == "reference"].metric)


def test_a_method_without_results_is_left_out_by_name_and_the_rest_is_usable(project):
    shutil.rmtree(project / "results" / "rewarded-soups")
    store = Store(project / "frontier.duckdb")
    run = publish(project / "results", store.path, CONFIG)
    problems = store.methods(run).set_index("method").problem
    assert problems[["reference", "clp-full"]].isna().all()
    assert (
        "rewarded-soups has not been evaluated; run the stage evaluate of rewarded-soups" in problems["rewarded-soups"]
    )
    assert store.points(run).method.unique().tolist() == ["reference", "clp-full"]


def test_the_reference_policy_is_needed(project):
    shutil.rmtree(project / "results" / "reference")
    with pytest.raises(ClpError, match="method reference has not been evaluated"):
        publish(project / "results", project / "frontier.duckdb", CONFIG)


def spoil(path: Path, change) -> None:
    rows = pd.read_parquet(path)
    change(rows).to_parquet(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="raw:brevity"), "no column 'raw:brevity'"),
        (lambda rows: rows.assign(**{"reward:brevity": np.nan}), "missing or not finite"),
        (lambda rows: rows.assign(**{"monitor:kl": np.nan}), "rewards or KL that are missing or not finite"),
        (lambda rows: rows.drop(columns="group"), "no column 'group'"),
        (lambda rows: rows.assign(group=rows.group + rows.response), "a prompt in two groups"),
        (lambda rows: rows.assign(weighting_id=rows.weighting_id + 1), "not numbered 0, 1, 2"),
        (lambda rows: rows.iloc[1:], "not every prompt at every weighting"),
        (lambda rows: rows.iloc[:0], "no rows"),
        (lambda rows: rows.assign(prompt_id="x" + rows.prompt_id), "other prompts than reference's"),
        (lambda rows: rows.assign(**{"w:brevity": rows["w:brevity"].replace(0, np.nan)}), "only some are known"),
    ],
)
def test_results_that_cannot_be_compared_are_left_out_with_the_reason(project, change, message):
    spoil(project / "results" / "clp-full" / "results.parquet", change)
    problem = problem_of(project, "clp-full")
    assert re.search(f"method clp-full have .*{message}.*evaluate of clp-full", problem)
    for frame in contents(project / "frontier.duckdb").values():  # never silently: a NaN is in no metric
        if "value" in frame:
            assert np.isfinite(frame["value"]).all()


def problem_of(project: Path, method: str) -> str:
    run = publish(project / "results", project / "frontier.duckdb", CONFIG)
    store = Store(project / "frontier.duckdb")
    assert method not in store.points(run).method.unique()
    return store.methods(run).set_index("method").problem[method]


def test_results_of_another_corpus_or_normalization_are_left_out(project):
    path = project / "results" / "clp-full" / "summary.json"
    for key, value in (("corpus_hash", "other"), ("normalization", {}), ("seed", 9), ("training_seed", 9)):
        summary = json.loads(path.read_text())
        path.write_text(json.dumps(summary | {key: value}))
        assert f"clp-full have another {key} than reference's" in problem_of(project, "clp-full")
        path.write_text(json.dumps(summary))
    path.write_text(json.dumps(summary | {"computed_on": "bfloat16, cuda, 8 threads"}))
    assert (
        "have been computed on bfloat16, cuda, 8 threads, those of reference on float32, cpu, 2 threads"
        in problem_of(project, "clp-full")
    )


def test_broken_result_files_are_one_sentence(project):
    (project / "results" / "clp-full" / "results.parquet").write_bytes(b"PAR1 no")
    problem = problem_of(project, "clp-full")
    assert re.search(r"cannot read .*results.parquet of method clp-full.*evaluate of clp-full", problem)
    assert "\n" not in problem


def test_curves_and_prompts_and_where_a_run_was_made(published):
    store = Store(published / "frontier.duckdb")
    run = store.run()
    curves = store.curves(run["run_id"])
    assert curves[(curves.method == "clp-full") & (curves.name == "kl")].value.tolist() == [0.0, 0.25]
    assert run["training_seed"] == 0 and "cores" in run["machine"]
    assert run["duration_seconds"] == 70 + 2 * (240.5 + 70)
    methods = store.methods(run["run_id"]).set_index("method")
    assert methods.weights_hash["clp-full"] == "hash of clp-full"
    found = store.sampled(run["run_id"], "clp-full")
    np.testing.assert_allclose(found.rewards.mean(1)[0], [0, 1], atol=1e-12)
    np.testing.assert_allclose(found.weightings[0], [0, 1])
    assert found.kl.shape == (5, 24) and (found.kl == 1.5).all()
    assert run["computed_on"] == {
        "evaluation": "float32, cpu, 2 threads",
        "training": dict.fromkeys(("clp-full", "rewarded-soups"), "float32, cpu, 2 threads"),
    }


def test_dominance_in_sql_is_that_of_the_frontier_module(tmp_path):
    # the same answers from two implementations, on points with ties and duplicates
    random = np.random.default_rng(0)
    for objectives in (2, 3):
        sets = {method: random.integers(0, 4, (6, objectives)).astype(float) for method in ("a", "b", "c")}
        with duckdb.connect() as connection:
            for statement in CREATE:
                connection.execute(statement)
            for method, points in sets.items():
                for number, rewards in enumerate(points.tolist()):
                    connection.execute(
                        "INSERT INTO points BY NAME SELECT 'r' AS run_id, ? AS method, ? AS weighting_id, ? AS rewards",
                        [method, number, rewards],
                    )
            kept = connection.execute("SELECT method, weighting_id, of_all_methods FROM nondominated").fetchall()
            shares = connection.execute("SELECT method_a, method_b, share FROM dominance").fetchall()
        everything = np.concatenate(list(sets.values()))
        best = frontier.nondominated(everything).reshape(3, 6)
        expected = [
            (method, number, bool(best[i, number]))
            for i, (method, points) in enumerate(sets.items())
            for number in np.flatnonzero(frontier.nondominated(points)).tolist()
        ]
        assert kept == expected
        assert len(shares) == 6
        for a, b, share in shares:
            assert share == pytest.approx(frontier.dominated_share(sets[a], sets[b]))


def unreadable(kind: str, path: Path) -> None:
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("not a database\n" * 1000)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind.startswith("truncated"):
        os.truncate(path, int(path.stat().st_size * float(kind.split()[1])))
    else:
        path.unlink() if kind == "other database" else None
        with duckdb.connect(path) as connection:
            statements = {
                "other database": "CREATE TABLE t (x INT)",
                "old version": "UPDATE meta SET schema_version = 0",
            }
            connection.execute(statements[kind])


KINDS = ["missing", "text", "empty", "directory", "truncated 0.3", "truncated 0.9", "other database", "old version"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_cannot_be_read_is_one_sentence_with_the_remedy(project, kind):
    path = project / "frontier.duckdb"
    unreadable(kind, path)
    store = Store(path)
    with pytest.raises(ClpError) as caught:
        store.texts(store.run()["run_id"], "service-000")
        store.metrics(store.run()["run_id"])
    message = str(caught.value)
    assert str(path) in message and "make repro" in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "directory"])
def test_publishing_over_it_builds_a_new_store_and_keeps_the_old_file(project, kind):
    path = project / "frontier.duckdb"
    unreadable(kind, path)
    old = path.read_bytes() if path.exists() else None
    run = publish(project / "results", path, CONFIG)
    assert Store(path).run()["run_id"] == run
    aside = list(project.glob("frontier.duckdb.*.set-aside"))
    assert [file.read_bytes() for file in aside] == ([] if old is None else [old])


def test_a_store_of_a_newer_version_is_never_touched(project):
    path = project / "frontier.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute(f"UPDATE meta SET schema_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    for call in (lambda: Store(path).run(), lambda: publish(project / "results", path, CONFIG)):
        with pytest.raises(ClpError, match=r"was written by a newer clp-lightning .*upgrade with `make setup`"):
            call()
    assert path.read_bytes() == before


VERSION_1 = """
    CREATE TABLE meta (schema_version BIGINT);
    INSERT INTO meta VALUES (1);
    CREATE TABLE runs (run_id VARCHAR PRIMARY KEY, created_at TIMESTAMP, published_at TIMESTAMP, code_commit VARCHAR,
        params JSON, corpus_hash VARCHAR, seed BIGINT, objectives VARCHAR[], normalization JSON, reference_point DOUBLE[],
        bootstrap_draws BIGINT, prompts BIGINT, versions JSON);
    INSERT INTO runs VALUES ('old', '2026-01-01', '2026-01-01', NULL, '{}', 'c', 0, ['a', 'b'], '{}', [-3, -3], 100, 1, '{}');
    CREATE TABLE methods (run_id VARCHAR, method VARCHAR, position BIGINT, rollouts DOUBLE, generated_tokens DOUBLE,
        train_seconds DOUBLE, evaluate_seconds DOUBLE, stored_parameters DOUBLE, models DOUBLE);
    INSERT INTO methods VALUES ('old', 'reference', 0, 0, 0, 0, 1, 5, 1), ('old', 'clp-full', 1, 9, 9, 9, 1, 5, 1);
    CREATE TABLE results (run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], prompt_id VARCHAR,
        document VARCHAR, reference_summary VARCHAR, response VARCHAR, rewards DOUBLE[], raw DOUBLE[], rouge_l DOUBLE,
        coverage DOUBLE, kl DOUBLE, length DOUBLE, distinct_2 DOUBLE);
    INSERT INTO results VALUES
        ('old', 'reference', 0, NULL, 'p', 'doc', 'ref', 'says', [0, 0], [1, 1], 0, 0, 0, 1, 1),
        ('old', 'clp-full', 0, [0, 1], 'p', 'doc', 'ref', 'answers', [0, 1], [1, 2], 0, 0, 0, 1, 1);
    CREATE TABLE points (run_id VARCHAR, method VARCHAR, weighting_id BIGINT, weighting DOUBLE[], rewards DOUBLE[],
        low DOUBLE[], high DOUBLE[], rouge_l DOUBLE, coverage DOUBLE, kl DOUBLE, length DOUBLE, distinct_2 DOUBLE);
    INSERT INTO points VALUES ('old', 'clp-full', 0, [0, 1], [0, 1], [0, 0], [1, 2], 0, 0, 0, 1, 1);
    CREATE TABLE metrics (run_id VARCHAR, method VARCHAR, metric VARCHAR, target VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE);
    INSERT INTO metrics VALUES ('old', 'clp-full', 'hypervolume', NULL, 12, 11, 13);
    CREATE TABLE comparisons (run_id VARCHAR, method_a VARCHAR, method_b VARCHAR, statistic VARCHAR, difference DOUBLE,
        low DOUBLE, high DOUBLE, probability DOUBLE);
"""


def test_runs_of_the_first_schema_are_brought_over(project):
    path = project / "frontier.duckdb"
    path.unlink()
    with duckdb.connect(path) as connection:
        connection.execute(VERSION_1)
    store = Store(path)
    with pytest.raises(ClpError, match=r"has the older store schema 1.*`clp stage publish` to bring it up to date"):
        store.run()
    new = publish(project / "results", path, CONFIG)
    assert store.runs().run_id.tolist() == [new, "old"]
    assert store.run("old")["training_seed"] is None
    assert store.documents("old")[["document", "reference_summary"]].to_numpy().tolist() == [["doc", "ref"]]
    assert store.texts("old", "p").response.tolist() == ["says", "answers"]
    assert store.metrics("old").value.tolist() == [12]
    assert store.curves("old").empty
    assert not list(project.glob("*.set-aside"))


def downgrade(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """Take out of a store what came after `version`; its runs are called old."""
    connection.execute("DROP VIEW j")
    for table in ("objective", "by_weighting", "regularized", *(["stages"] if version < 4 else [])):
        connection.execute(f"DROP TABLE {table}")
    for table, columns in (("runs", "alpha, computed_on"), ("prompts", '"group"')):
        connection.execute(f"CREATE TABLE other AS SELECT * EXCLUDE ({columns}) FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(f"ALTER TABLE other RENAME TO {table}")
    connection.execute("DROP TABLE decisions")
    if version > 2:
        connection.execute(
            """CREATE TABLE decisions (run_id VARCHAR, decided_at TIMESTAMP, method VARCHAR, challenger VARCHAR,
               champion VARCHAR, promoted BOOLEAN, reasons VARCHAR[], hypervolume DOUBLE, champion_hypervolume DOUBLE,
               difference DOUBLE, low DOUBLE, high DOUBLE, probability DOUBLE, worst_case DOUBLE[], worst_case_fall DOUBLE[],
               kl DOUBLE, length_ratio DOUBLE, rule JSON);
               INSERT INTO decisions VALUES ('old', '2026-01-01', 'clp-full', 'x', 'y', true, [], 9, 8, 1, 0.5, 1.5, 1, [0, 0],
               [0, 0], 1, 1, '{}')"""
        )
    for table in ("metrics", "comparisons"):
        name = "metric" if table == "metrics" else "statistic"
        connection.execute(
            f"""DELETE FROM {table} WHERE {name} IN ('mean_j', 'mean_kl', 'mean_regret') OR {name} LIKE 'regularized%'
                OR {name} LIKE '%above_reference'"""
        )
    connection.execute("UPDATE meta SET schema_version = ?", [version])
    for table in ("runs", "methods", "points", "results", "metrics", "comparisons", "prompts"):
        connection.execute(f"UPDATE {table} SET run_id = 'old'")


@pytest.mark.parametrize("version", [2, 3, 4])
def test_runs_of_later_schemas_are_brought_over(project, version):
    path = project / "frontier.duckdb"
    with duckdb.connect(path) as connection:
        downgrade(connection, version)
    with pytest.raises(ClpError, match="schema"):
        Store(path).runs()
    run = publish(project / "results", path, CONFIG)
    store = Store(path)
    assert set(store.runs().run_id) == {run, "old"} and len(store.points("old")) == len(store.points(run))
    assert store.stages("old").empty
    decisions = store.decisions()
    if version == 2:
        assert decisions.empty
    else:
        assert decisions[["statistic", "value", "other_value"]].to_numpy().tolist() == [["hypervolume", 9, 8]]
    # J is computed of what the old run's answers hold; only which prompts are alike is not known of it
    assert store.run("old")["alpha"] == CONFIG.training.alpha and store.run("old")["computed_on"] is None
    assert store.groups("old") is None and store.groups(run) is not None
    for frame in (Store.objective, Store.by_weighting):
        old, new = frame(store, "old"), frame(store, run)
        values = "j" if "j" in old else "difference"
        np.testing.assert_allclose(old[values], new[values], atol=1e-12)
    names = ["method", "metric", "target"]
    by_draws = "metric.str.endswith('dominates_all')"  # a share of the draws, which groups change
    both = [store.metrics(each).query(f"not {by_draws}").set_index(names).value for each in ("old", run)]
    pd.testing.assert_series_equal(both[0].sort_index(), both[1].sort_index(), atol=1e-12)
    assert len(store.points("old", regularized=True)) == len(store.points("old"))


def test_stages_are_kept_with_their_run_and_runs_can_be_forgotten(project):
    path = project / "frontier.duckdb"
    first = Store(path).run()["run_id"]
    stages = pd.DataFrame(
        [{"stage": "sft", "started_at": pd.Timestamp("2026-01-01"), "seconds": 3.5, "peak_memory_mb": 9}]
    )
    other = CONFIG.model_copy(update={"seed": 1})
    for file in (project / "results").glob("*/summary.json"):
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    second = publish(project / "results", path, other, stages)
    store = Store(path)
    assert store.runs().run_id.tolist() == [second, first]
    assert store.stages(second).to_dict("records") == stages.to_dict("records") and store.stages(first).empty
    forget(path, [second])
    assert store.runs().run_id.tolist() == [first] and store.metrics(second).empty and store.stages(second).empty
    assert len(store.points(first))


def test_a_folder_without_write_permission_is_one_line_and_keeps_the_store(project):
    before, code = (
        (project / "frontier.duckdb").read_bytes(),
        """
        import sys
        from results_factory import config
        from clp_lightning.errors import ClpError
        from clp_lightning.store.queries import publish
        try:
            publish("results", "frontier.duckdb", config())
        except ClpError as error:
            print(error)
        """,
    )
    project.chmod(0o555)
    try:
        paths = [str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-c", textwrap.dedent(code)]
        if os.geteuid() == 0:  # root may write everywhere, but for a process without that capability
            command = ["setpriv", "--bounding-set=-dac_override", *command]
        done = subprocess.run(
            command,
            cwd=project,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
    finally:
        project.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot write frontier.duckdb: ") and done.stdout.count("\n") == 1
    assert "fix permissions" in done.stdout
    assert (project / "frontier.duckdb").read_bytes() == before


def test_an_empty_store_says_so(project):
    path = project / "frontier.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("DELETE FROM runs")
    with pytest.raises(ClpError, match="holds no runs yet; run `make repro`"):
        Store(path).run()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    code = textwrap.dedent(code)
    paths = [str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_leaves_the_old_store(project):
    # A limit on the size of files, smaller than the store, fails as a full disk does: in the middle of a write.
    before = (project / "frontier.duckdb").read_bytes()
    write_results(project / "results", CONFIG, seed=7)
    process = python(
        """
        import resource, sys
        from pathlib import Path
        from results_factory import config
        from clp_lightning.errors import ClpError
        from clp_lightning.store.queries import publish
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        try:
            publish(Path(sys.argv[1]) / "results", Path(sys.argv[1]) / "frontier.duckdb", config())
        except ClpError as error:
            print(error)
        """,
        project,
    )
    out, err = process.communicate(timeout=60)
    assert "cannot write" in out and "free space" in out, err
    assert (project / "frontier.duckdb").read_bytes() == before
    assert sorted(file.name for file in project.iterdir()) == ["frontier.duckdb", "results"]
    publish(project / "results", project / "frontier.duckdb", CONFIG)
    assert len(Store(project / "frontier.duckdb").runs()) == 2


def test_a_store_open_for_writing_elsewhere_is_said_plainly(project):
    process = python(
        """
        import sys, time, duckdb
        connection = duckdb.connect(sys.argv[1])
        print("open", flush=True)
        time.sleep(60)
        """,
        project / "frontier.duckdb",
    )
    try:
        assert process.stdout.readline() == "open\n"
        for call in (
            lambda: Store(project / "frontier.duckdb").runs(),
            lambda: publish(project / "results", project / "frontier.duckdb", CONFIG),
        ):
            with pytest.raises(ClpError, match="is open for writing in another program; close it there"):
                call()
    finally:
        process.kill()
        process.communicate()
    assert len(list(project.glob("*.set-aside"))) == 0


def test_a_reader_never_sees_a_half_written_store_while_publishers_are_killed(project):
    publisher = """
        import sys
        from pathlib import Path
        from results_factory import config
        from clp_lightning.store.queries import publish
        print("started", flush=True)
        while True:
            publish(Path(sys.argv[1]) / "results", Path(sys.argv[1]) / "frontier.duckdb", config())
            print("published", flush=True)
        """
    store = Store(project / "frontier.duckdb")
    expected = store.points(store.run()["run_id"])
    random, reads, seen = np.random.default_rng(0), 0, set()
    for attempt in range(4):
        process = python(publisher, project)
        try:
            assert process.stdout.readline() == "started\n"
            until = time.monotonic() + random.uniform(0.3, 1.2)
            # on a busy machine: the first publisher lives until it has published once
            while time.monotonic() < until or (attempt == 0 and len(seen) < 2):
                assert process.poll() is None, process.communicate()[1]
                pd.testing.assert_frame_equal(store.points(store.run()["run_id"]), expected)
                seen.add(store.identity())
                reads += 1
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert reads > 10 and len(seen) > 1
    write_method(project / "results", CONFIG, "clp-full", 0.9)
    publish(project / "results", store.path, CONFIG)  # leftovers of the killed ones do no harm
    assert len(store.runs()) == 2
    assert sorted(file.name for file in project.iterdir()) == ["frontier.duckdb", "results"]
