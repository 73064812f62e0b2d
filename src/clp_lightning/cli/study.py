"""The command `clp study`: runs a study, or reports what it has found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clp_lightning.errors import UsageError, plural

if TYPE_CHECKING:
    from clp_lightning.study.runs import Run


def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY", help="Name of conf/studies/NAME.yaml, or a YAML file; without one: what there is."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing: print the table and draw the picture.")
    ] = False,
    plan: Annotated[bool, typer.Option("--list", help="Run nothing: print the runs and which are done.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run; the same for all runs of a study.")] = 1,
    panel: Annotated[list[str] | None, typer.Option(help="Only this panel; repeat it for several.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; repeat it for several.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Only this budget; repeat it for several.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this training seed; repeat it for several.")] = None,
    table: Annotated[Path, typer.Option(help="Table of all studies' runs; its other files lie beside it.")] = Path(
        "docs/study/runs.csv"
    ),
    work: Annotated[Path, typer.Option(help="Folder for models, answers and logs of the runs.")] = Path("build/study"),
    picture: Annotated[
        Path | None, typer.Option(help="Picture that --report draws (.png or .svg); STUDY.png beside the table.")
    ] = None,
    pool: Annotated[
        bool,
        typer.Option(
            "--pool",
            help="Report also runs with other axes, or computed on something else; each is compared with its like.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --report: print JSON instead of a table.")] = False,
) -> None:
    """Train methods x training seeds x budgets side by side, every finished run a row of a table; or report what they say.

    Run again it does what is left: an interrupted run continues, finished ones stay.

    Example: clp study main --jobs 2 --budget 1 --seed 3 && clp study main --report
    """
    from clp_lightning.study.definition import load_study, studies
    from clp_lightning.study.runs import plan as runs_of

    if name is None:
        raise UsageError(f"name a study: {', '.join(studies()) or 'there is none in conf/studies'}")
    called, definition = load_study(name)
    only = {"panel": panel or (), "arm": arm or (), "budget": budget or (), "seed": seed or ()}
    runs = runs_of(called, definition, only=only)
    if plan:
        _list(runs, table)
        return
    if report:
        from clp_lightning.study.comparison import report as compare

        compare(definition, runs, table, picture or table.with_name(f"{called}.png"), pool=pool, as_json=as_json)
        return
    from clp_lightning.study.schedule import Place, run_study

    run_study(runs, Place(Path("."), work, table), jobs=jobs, threads=threads)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(study)


def _list(runs: "Sequence[Run]", table: Path) -> None:
    """Print every run, whether it is done, and what is left."""
    from clp_lightning.study.runs import outstanding
    from clp_lightning.study.table import read

    left = {run.key for run in outstanding(runs, read(table), table)}
    for run in runs:
        drawn = 0 if run.trained else run.rollouts
        print(f"{'to do' if run.key in left else 'done '}  {drawn:>6} rollouts  {run.name}")
    rollouts = sum(run.rollouts for run in runs if run.key in left and run.trained is None)
    print(f"{len(left)} of {plural(len(runs), 'run')} to do, {rollouts} rollouts")
