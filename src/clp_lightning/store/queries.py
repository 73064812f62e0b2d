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
from clp_lightning.store.results import MONITORS
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
        """All runs, the latest first; `params`, `normalization` and `versions` are dicts."""
        runs = self._query("SELECT * FROM m.runs ORDER BY published_at DESC, run_id")
        for column in ("params", "normalization", "versions"):
            runs[column] = [json.loads(value) for value in runs[column]]
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

    def history(self) -> pd.DataFrame:
        """Hypervolume of every method in every run: run_id, published_at, method, value, low, high."""
        query = """SELECT run_id, published_at, method, value, low, high FROM m.metrics JOIN m.runs USING (run_id)
                   JOIN m.methods USING (run_id, method) WHERE metric = 'hypervolume' ORDER BY published_at, run_id, position"""
        return self._query(query)

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

    def per_prompt(self, run: str, method: str) -> np.ndarray:
        """A method's rewards [N, P, K]: weightings in their order, prompts by id, the mean over samples of a prompt."""
        objectives = range(1, len(self.run(run)["objectives"]) + 1)
        each = ", ".join(f"avg(rewards[{k}]) AS r{k}" for k in objectives)
        query = f"""SELECT weighting_id, {each} FROM m.results WHERE run_id = ? AND method = ?
                    GROUP BY weighting_id, prompt_id ORDER BY weighting_id, prompt_id"""  # noqa: S608 - numbers only
        frame = self._query(query, run, method)
        values = frame[[f"r{k}" for k in objectives]].to_numpy(float)
        return values.reshape(frame.weighting_id.nunique(), -1, len(objectives))

    def points(self, run: str) -> pd.DataFrame:
        """Mean rewards of every method and weighting with 95 % intervals, and the means of the monitors."""
        query = """SELECT p.* EXCLUDE (run_id) FROM m.points p JOIN m.methods USING (run_id, method)
                   WHERE run_id = ? ORDER BY position, weighting_id"""
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
