"""The DuckDB store: `publish` a run, query it with `Store`. SQL stands in the `store*` modules only."""

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from clp_lightning.config.methods import REFERENCE
from clp_lightning.errors import ClpError, make
from clp_lightning.store.publishing import forget, publish, record_decision
from clp_lightning.store.results import MONITORS, Sampled, as_sampled, sampled_query
from clp_lightning.store.schema import attach, not_a_store

__all__ = ["MONITORS", "REFERENCE", "Store", "forget", "publish", "record_decision"]


class Store:
    """A store opened for reading; every query sees the newest publication.

    Each query opens the file anew, so that a publication can swap it at any time, and is cached until it does. Queries
    give data frames with `w:`, `reward:`, `raw:`, `low:` and `high:` columns per objective. Raises `ClpError` when
    the file is missing, is no store, is cut short or has another schema version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._cache: dict[Any, pd.DataFrame] = {}
        self._cached_for: tuple[int, int] | None = None

    def identity(self) -> tuple[int, int] | None:
        """Inode and modification time of the file: changes with every publication, None when there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def runs(self) -> pd.DataFrame:
        """All runs, the latest first; `params`, `normalization`, `versions` and, if known, `computed_on` are dicts."""
        runs = self._query("SELECT * FROM m.runs ORDER BY published_at DESC, run_id")
        for column in ("params", "normalization", "versions", "computed_on"):
            runs[column] = [None if pd.isna(value) else json.loads(value) for value in runs[column]]
        for column in ("objectives", "reference_point"):
            runs[column] = [np.asarray(value).tolist() for value in runs[column]]
        return runs

    def run(self, run: str | None = None) -> dict[str, Any]:
        """One run's row as a dict, the latest by default. Raises `ClpError` for an unknown run."""
        runs = self.each_run()
        if not runs:
            raise ClpError(f"{self.path} holds no runs yet; run {make('repro')} for the first")
        chosen = next((each for each in runs if run in (None, each["run_id"])), None)
        if chosen is None:
            raise ClpError(f"{self.path} has no run {run}; it has {', '.join(each['run_id'] for each in runs[:5])}")
        return chosen

    def each_run(self) -> list[dict[str, Any]]:
        """Every run's row as a dict, the latest first."""
        return [
            {
                str(key): value.item() if isinstance(value, np.generic) else None if value is pd.NA else value
                for key, value in row.items()
            }
            for _, row in self.runs().iterrows()
        ]

    def methods(self, run: str) -> pd.DataFrame:
        """The run's methods with their costs, the reference policy first; `problem` says why one has no results."""
        return self._query("SELECT * EXCLUDE (run_id, position) FROM m.methods WHERE run_id = ? ORDER BY position", run)

    def curves(self, run: str) -> pd.DataFrame:
        """Training curves: method, step, name, value."""
        query = "SELECT * EXCLUDE (run_id) FROM m.curves WHERE run_id = ? ORDER BY method, name, step"
        return self._query(query, run)

    def history(self, metric: str = "mean_j") -> pd.DataFrame:
        """A metric of every method in every run: run_id, published_at, method, value, low, high."""
        query = """SELECT run_id, published_at, method, value, low, high FROM m.metrics JOIN m.runs USING (run_id)
                   JOIN m.methods USING (run_id, method) WHERE metric = ? AND target IS NULL
                   ORDER BY published_at, run_id, position"""
        return self._query(query, metric)

    def mean_kl(self) -> pd.DataFrame:
        """Mean KL over the weightings of every method in every run: run_id, method, kl."""
        return self._query("SELECT run_id, method, avg(kl) AS kl FROM m.points GROUP BY ALL ORDER BY ALL")

    def answers(self, run: str, method: str, objective: int, at_most: float | None, limit: int) -> pd.DataFrame:
        """The answers of a method with the least of the objective at that position, below `at_most` if it is given."""
        query = """SELECT r.weighting, r.rewards, r.response, r.kl, r.length, p.document
                   FROM m.results r JOIN m.prompts p USING (run_id, prompt_id)
                   WHERE run_id = ? AND method = ? AND (?::DOUBLE IS NULL OR rewards[?::BIGINT] <= ?)
                   ORDER BY rewards[?::BIGINT], prompt_id, weighting_id, response LIMIT ?"""
        position = objective + 1  # lists of DuckDB begin at 1
        frame = self._query(query, run, method, at_most, position, at_most, position, limit)
        return self._named(run, frame)

    def answers_at(self, run: str, method: str, weighting_id: int, limit: int) -> pd.DataFrame:
        """Answers of a method at one weighting with their documents, by prompt."""
        query = """SELECT p.document, r.response, r.rewards, r.kl, r.length
                   FROM m.results r JOIN m.prompts p USING (run_id, prompt_id)
                   WHERE run_id = ? AND method = ? AND weighting_id = ? ORDER BY prompt_id, response LIMIT ?"""
        return self._named(run, self._query(query, run, method, weighting_id, limit))

    def stages(self, run: str) -> pd.DataFrame:
        """The last execution of each stage that a run rests on, in order: stage, started_at, seconds, peak_memory_mb."""
        return self._query("SELECT * EXCLUDE (run_id) FROM m.stages WHERE run_id = ? ORDER BY started_at, stage", run)

    def decisions(self) -> pd.DataFrame:
        """Every promotion and refusal, the latest first; columns as in the table `decisions`, `rule` is a dict."""
        decisions = self._query("SELECT * FROM m.decisions ORDER BY decided_at DESC")
        decisions["rule"] = [json.loads(value) for value in decisions["rule"]]
        return decisions

    def sampled(self, run: str, method: str) -> Sampled:
        """A method's rewards and KL at every weighting and prompt, weightings in their order, prompts by id."""
        return as_sampled(self._query(sampled_query(len(self.run(run)["objectives"]), "m"), run, method), method)

    def groups(self, run: str) -> tuple[str, ...] | None:
        """Each prompt's group, prompts by id; None where a run of an older version does not tell."""
        found = self._query('SELECT "group" FROM m.prompts WHERE run_id = ? ORDER BY prompt_id', run)["group"]
        return None if found.isna().any() else tuple(found)

    def points(self, run: str, *, regularized: bool = False) -> pd.DataFrame:
        """Mean rewards of every method and weighting with 95 % intervals, and the means of the monitors.

        With `regularized` the rewards and intervals are those of `(1 - alpha) R - alpha KL`; no rows where a run has none.
        """
        replaced = "REPLACE (v.rewards AS rewards, v.low AS low, v.high AS high)" if regularized else ""
        joined = "JOIN m.regularized v USING (run_id, method, weighting_id)" if regularized else ""
        query = f"""SELECT p.* EXCLUDE (run_id) {replaced} FROM m.points p {joined} JOIN m.methods USING (run_id, method)
                    WHERE run_id = ? ORDER BY position, weighting_id"""  # noqa: S608 - no text of anybody else
        return self._named(run, self._query(query, run))

    def objective(self, run: str) -> pd.DataFrame:
        """J = (1 - alpha) w.R - alpha KL of every method at every weighting: alpha, kl, j, j_low, j_high, regret and its ends.

        The reference policy is at every weighting that any method was given. No rows where a run has no J.
        """
        query = """SELECT o.* EXCLUDE (run_id) FROM m.objective o JOIN m.methods USING (run_id, method)
                   WHERE run_id = ? ORDER BY position, weighting_id"""
        return self._named(run, self._query(query, run))

    def by_weighting(self, run: str) -> pd.DataFrame:
        """Paired differences in J at each weighting that two methods were given: difference, from_, to, probability."""
        query = """SELECT c.* EXCLUDE (run_id, low, high), low AS from_, high AS to_ FROM m.by_weighting c
                   JOIN m.methods a ON a.run_id = c.run_id AND a.method = c.method_a
                   JOIN m.methods b ON b.run_id = c.run_id AND b.method = c.method_b
                   WHERE c.run_id = ? ORDER BY a.position, b.position, c.weighting"""
        return self._named(run, self._query(query, run))

    def metrics(self, run: str) -> pd.DataFrame:
        """All metrics of docs/metrics.md: method, metric, target, value, low, high."""
        query = """SELECT x.* EXCLUDE (run_id) FROM m.metrics x JOIN m.methods USING (run_id, method)
                   WHERE run_id = ? ORDER BY metric, position, target"""
        return self._query(query, run)

    def comparisons(self, run: str) -> pd.DataFrame:
        """Paired differences between two methods: method_a, method_b, statistic, difference, low, high, probability."""
        query = """SELECT c.* EXCLUDE (run_id) FROM m.comparisons c
                   JOIN m.methods a ON a.run_id = c.run_id AND a.method = c.method_a
                   JOIN m.methods b ON b.run_id = c.run_id AND b.method = c.method_b
                   WHERE c.run_id = ? ORDER BY statistic, a.position, b.position"""
        return self._query(query, run)

    def documents(self, run: str, search: str = "", limit: int | None = None) -> pd.DataFrame:
        """Prompts whose document or reference summary (which may be null) contains `search` in any case; the first `limit`."""
        query = """SELECT prompt_id, document, reference_summary FROM m.prompts
                   WHERE run_id = ? AND contains(lower(concat_ws(' ', document, reference_summary)), lower(?))
                   ORDER BY prompt_id LIMIT ?"""
        return self._query(query, run, search, limit)

    def texts(self, run: str, prompt_id: str) -> pd.DataFrame:
        """Every method's responses to one prompt at every weighting, with rewards and monitors."""
        query = """SELECT r.* EXCLUDE (run_id), document, reference_summary
                   FROM m.results r JOIN m.methods USING (run_id, method) JOIN m.prompts USING (run_id, prompt_id)
                   WHERE run_id = ? AND prompt_id = ? ORDER BY position, weighting_id, response"""
        return self._named(run, self._query(query, run, prompt_id))

    def _named(self, run: str, frame: pd.DataFrame) -> pd.DataFrame:
        objectives = self.run(run)["objectives"]
        for column, prefix in (
            ("weighting", "w"),
            ("rewards", "reward"),
            ("raw", "raw"),
            ("low", "low"),
            ("high", "high"),
        ):
            if column in frame:
                lists = [
                    list(value) if isinstance(value, np.ndarray | list) else [np.nan] * len(objectives)
                    for value in frame[column]
                ]
                names = [f"{prefix}:{name}" for name in objectives]
                named = pd.DataFrame(lists, index=frame.index, columns=names, dtype=float)
                frame = pd.concat([frame.drop(columns=column), named], axis=1)
        return frame

    def _query(self, query: str, *parameters: Any) -> pd.DataFrame:
        with self._lock:
            identity = self.identity()
            if identity != self._cached_for or len(self._cache) > 256:
                self._cache.clear()
                self._cached_for = identity
            key = (query, parameters)
            if key not in self._cache:
                try:
                    with contextlib.closing(duckdb.connect()) as connection:
                        attach(connection, self.path)
                        self._cache[key] = connection.execute(query, list(parameters)).df()
                except duckdb.Error as error:
                    raise not_a_store(self.path, error) from error
            return self._cache[key].copy()
