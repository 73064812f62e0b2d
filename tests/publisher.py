"""Publishes a project's results again and again: `python publisher.py FOLDER COUNT`; prints the time and the run of each.

A hundred different runs take turns, so that a view that is older than a few seconds shows another run than the newest.
"""

import sys
import time
from pathlib import Path

from results_factory import config

from clp_lightning.store.queries import Store, forget, publish


def main(folder: Path, count: int) -> None:
    store = folder / "frontier.duckdb"
    for number in range(count):
        evaluation = config().evaluation.model_dump() | {"bootstrap_draws": 100 + number % 100}
        run = publish(folder / "results", store, config(evaluation=evaluation))
        print(time.time(), run, flush=True)
        if number % 20 == 19:  # earlier runs are copied forward: the store is kept as small as `clp prune` would
            forget(store, Store(store).runs().run_id[5:].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
