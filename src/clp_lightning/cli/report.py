"""The commands that show what the store holds: `clp frontier` and `clp report`."""

import functools
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def frontier(
    store: Annotated[Path, typer.Option(help="The DuckDB file that the pipeline published.")] = Path("frontier.duckdb"),
    run: Annotated[str | None, typer.Option(help="Run to show; the newest by default.")] = None,
    against: Annotated[str | None, typer.Option(help="Another run to compare with, method by method.")] = None,
    seeds: Annotated[bool, typer.Option(help="Pool the runs that differ in training.seed only.")] = False,
    points: Annotated[bool, typer.Option(help="Print every point, also of many methods.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Print the comparison of the methods from the store: mean J, what training maximizes, first.

    Example: clp frontier --json | jq '.methods[] | [.method, .mean_j]'
    """
    from clp_lightning.report import several, tables
    from clp_lightning.report.run import comparison
    from clp_lightning.store import runs
    from clp_lightning.store.queries import Store

    opened, console = Store(store), Console()
    if against:
        compared = runs.against(opened, opened.run(run)["run_id"], opened.run(against)["run_id"])
        show = several.print_against
    elif seeds:
        pooled = runs.over_seeds(opened, runs.siblings(opened, run))
        compared = several.seeds_as_json(pooled | {"left_out": runs.left_out(opened, run)})
        show = several.print_seeds
    else:
        compared = comparison(opened, run)
        show = functools.partial(tables.print_table, points=points)
    if as_json:
        print(json.dumps(compared, indent=2))
        return
    show(compared, console)
    if not (against or seeds) and len(found := runs.siblings(opened, run)) > 1:
        named = ", ".join(str(one["training_seed"]) for one in found)
        console.print(
            f"One training of {len(found)} (training seeds {named}): `clp frontier --seeds` says what holds over all."
        )


def report(
    out: Annotated[Path, typer.Argument(help="File to write (or a folder for it); an earlier one is replaced.")] = Path(
        "reports/report.html"
    ),
    store: Annotated[Path, typer.Option(help="The DuckDB file that the pipeline published.")] = Path("frontier.duckdb"),
    run: Annotated[str | None, typer.Option(help="Run to report; the newest by default.")] = None,
) -> None:
    """Write one self-contained HTML file with the figures and tables of a run.

    Example: clp report --run 0123456789abcdef reports/report.html
    """
    from clp_lightning.files import file_at
    from clp_lightning.report.html import write_html
    from clp_lightning.store.queries import Store

    out = file_at(out, "report.html")
    write_html(Store(store), run, out)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB); any browser opens it, offline too")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(frontier)
    app.command()(report)
