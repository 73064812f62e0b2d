"""The stage `publish`: all results into the store, and the reports."""

import sys

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.pipeline import records
from clp_lightning.report.run import comparison, write_report
from clp_lightning.store.publishing import publish as publish_store
from clp_lightning.store.queries import Store


def publish(config: Config) -> None:
    """Build the store and the reports from all results."""
    run = publish_store(paths.RESULTS, paths.STORE, config, records.executions())
    for reason in Store(paths.STORE).methods(run).problem.dropna():
        print(f"clp: warning: left out of the comparison: {reason}", file=sys.stderr)
    compared = comparison(Store(paths.STORE), run)
    write_report(compared, paths.REPORTS)
    records.metrics("publish", {row["method"]: {"hypervolume": row["hypervolume"]} for row in compared["methods"]})
