"""How the store does with millions of per-prompt rows: `python -m bench.store_scale --rows 10000000`.

Synthetic results of the shape that `evaluate` writes, published as one run; then every query that the dashboard makes.
Prints JSON: seconds of publication, peak memory of the publishing process, seconds of each query (the first, uncached).
"""

import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import duckdb
import numpy as np
import typer

from clp_lightning.config.parameters import Config
from clp_lightning.config.recipes import compose
from clp_lightning.files import write_json
from clp_lightning.store.queries import Store, publish
from clp_lightning.store.results import MONITORS
from clp_lightning.weightings import grid


def _grid(config: Config) -> np.ndarray:
    settings = config.evaluation
    return grid(len(config.objectives), settings.weightings, off_grid=settings.off_grid, seed=config.seed)


def write_results(folder: Path, config: Config, prompts: int) -> None:
    """Write every method's results: deterministic pseudo-random rewards and texts of the usual length."""
    objectives, points = config.objectives, _grid(config)
    connection = duckdb.connect()
    for number, method in enumerate(config.compared):
        rows = [None] if method == "reference" else points.tolist()
        (folder / method).mkdir(parents=True)
        weights = "([" + ", ".join("NULL" if row is None else str(row) for row in rows) + "]::DOUBLE[][])"
        columns = [
            f"'{method}' AS method", "w AS weighting_id", "'prompt-' || p AS prompt_id",
            "'service-' || p % 100 AS \"group\"",
            "'create resource ' || p || ': ' || repeat('the name of the resource ', 4) AS document",
            "'The name of resource ' || p || '.' AS reference_summary",
            "'The name of the resource ' || hash(p * 1000 + w) AS response",
        ]  # fmt: skip
        for k, name in enumerate(objectives):
            noise = f"(hash(p * 7919 + w * 31 + {k} + {number * 101}) % 100000) / 50000.0 - 1"
            columns += [
                f'{weights}[w + 1][{k + 1}] AS "w:{name}"',
                f'{noise} AS "reward:{name}"',
                f'{noise} AS "raw:{name}"',
            ]
        columns += [f'0.5 AS "monitor:{name}"' for name in MONITORS]
        connection.execute(
            f"""COPY (SELECT {", ".join(columns)} FROM range({len(rows)}) a(w), range({prompts}) b(p))
                TO '{folder / method / "results.parquet"}' (FORMAT parquet)"""  # noqa: S608 - our own values
        )
        summary = {
            "method": method, "objectives": list(objectives), "seed": config.seed, "training_seed": config.training.seed,
            "normalization": {name: {"mean": 0.0, "std": 1.0} for name in objectives}, "corpus_hash": "synthetic", "cost": {},
            "computed_on": "nothing",
        }  # fmt: skip
        write_json(folder / method / "summary.json", summary)


def _publish(folder: Path, config: Config) -> dict[str, Any]:
    started = time.monotonic()
    run = publish(folder / "results", folder / "frontier.duckdb", config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"run": run, "publish_s": round(time.monotonic() - started, 1), "publish_peak_mb": round(peak)}


def synthetic_store(folder: Path, rows: int) -> Path:
    """Publish one run of about so many per-prompt rows into `folder` and return the store's path."""
    config = compose("arena")[0]
    write_results(folder / "results", config, rows // _points(config))
    publish(folder / "results", folder / "frontier.duckdb", config)
    return folder / "frontier.duckdb"


def _points(config: Config) -> int:
    return 1 + (len(config.compared) - 1) * len(_grid(config))


def main(rows: Annotated[int, typer.Option(help="Per-prompt rows of all methods together.")] = 10_000_000) -> None:
    """Measure publication and queries."""
    config = compose("arena")[0]
    points = _points(config)
    prompts = rows // points
    context = multiprocessing.get_context("spawn")  # a process of its own: its peak memory is that of publication
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_results(folder / "results", config, prompts)
        with ProcessPoolExecutor(1, mp_context=context) as process:
            report = process.submit(_publish, folder, config).result()  # raises if the process is killed
        store, run = Store(folder / "frontier.duckdb"), report["run"]
        queries = {
            "runs": lambda: store.runs(),
            "methods": lambda: store.methods(run),
            "points": lambda: store.points(run),
            "objective": lambda: store.objective(run),
            "by_weighting": lambda: store.by_weighting(run),
            "metrics": lambda: store.metrics(run),
            "comparisons": lambda: store.comparisons(run),
            "curves": lambda: store.curves(run),
            "documents": lambda: store.documents(run, "resource 77"),
            "texts": lambda: store.texts(run, "prompt-77"),
        }
        seconds = {}
        for query, call in queries.items():
            started = time.monotonic()
            call()
            seconds[query] = round(time.monotonic() - started, 3)
        size = (folder / "frontier.duckdb").stat().st_size / 1e6
        print(json.dumps(report | {"rows": prompts * points, "store_mb": round(size), "queries_s": seconds}, indent=2))


if __name__ == "__main__":
    typer.run(main)
