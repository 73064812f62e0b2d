"""`clp promote`, `clp rollback`, `clp evaluate` and `clp prune`: which policy is in use, what it does, what may go."""

import contextlib
import datetime
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from clp_lightning.errors import UsageError, plural


def promote(
    params: Annotated[Path, typer.Option(help="Parameter file of the project.")] = Path("params.yaml"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the decision as JSON; null if there is nothing new.")
    ] = False,
) -> None:
    """Make the newly trained policy the champion if it is better than the present one (`promotion` in params.yaml).

    Example: clp promote
    """
    from clp_lightning.config.parameters import load_config
    from clp_lightning.promotion import challenger

    config = load_config(params)
    with contextlib.redirect_stdout(
        sys.stderr
    ):  # progress of the sampling; what is printed on standard output is the result
        row = challenger.promote(config)
    if as_json:
        print(json.dumps(row, default=str))
    else:
        print("nothing new: the champion is this very policy" if row is None else challenger.sentence(row))


def rollback() -> None:
    """Make the champion's predecessor the champion again.

    Example: clp rollback
    """
    from clp_lightning.promotion import champion

    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    entry = champion.rollback(now)
    print(f"the champion is {champion.KEPT / entry['id'] / entry['method']} again")


def evaluate(
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    weighting: Annotated[
        list[str] | None, typer.Option(help="Trade-off; repeat it. The grid of params.yaml without any.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt per line; the test prompts of the corpus without it.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Prompts of the corpus: test (the default), or validation to choose settings on.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Parquet file for every answer with its rewards (or a folder for it)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    params: Annotated[Path, typer.Option(help="Parameter file of the project.")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure a policy's J, rewards and KL at any weightings, on the test prompts, the validation prompts or your own.

    Example: clp evaluate --model champion --weighting informativeness=0.9,readability=0.1 --prompts prompts.txt
    """
    if split is not None and (split not in ("test", "validation") or prompts is not None):
        wrong = (
            "choose it, or --prompts"
            if prompts is not None
            else f"{split!r} is neither test nor validation; choose one"
        )
        raise UsageError(f"--split: {wrong}")
    from clp_lightning.config.parameters import load_config
    from clp_lightning.evaluation import on_demand
    from clp_lightning.files import atomic, file_at
    from clp_lightning.promotion import champion

    out = None if out is None else file_at(out, "evaluation.parquet")
    config, model = load_config(params), champion.resolve(model)
    points = on_demand.parse_points(weighting or [], config.objectives, config)
    own = None if prompts is None else on_demand.own_prompts(prompts)
    with contextlib.redirect_stdout(sys.stderr):  # progress; what is printed on standard output is the result
        frame = on_demand.evaluate_policy(config, model, points, own, seed=seed, split=split or "test")
    if out is not None:
        with atomic(out) as beside:
            frame.to_parquet(beside, index=False)
    rows = on_demand.summarize(frame, config.objectives)
    measured = on_demand.measure_objective(frame, config, grid=not weighting)
    if as_json:
        report = {
            "model": str(model),
            "prompts": int(frame.prompt_id.nunique()),
            "seed": seed,
            **measured,
            "points": rows,
        }
        report["split"] = None if prompts else split or "test"
        print(json.dumps(report))
        return
    from rich.console import Console

    from clp_lightning.report.points import print_objective, print_points

    shown = {"objectives": config.objectives, "methods": [{"method": model.name, "points": rows}]}
    asked = plural(frame.prompt_id.nunique(), f"{split} prompt" if split else "prompt")
    title = f"{model}, {asked}: mean standardized rewards [95 % interval]"
    print_objective(measured, console := Console())
    print_points(shown, title, console)


def prune(
    keep: Annotated[int, typer.Option(min=0, help="Earlier champions to keep, and as many refused policies.")] = 3,
    runs: Annotated[int, typer.Option(min=1, help="Runs to keep in the store, the newest.")] = 50,
    days: Annotated[float, typer.Option(min=0, help="Checkpoints and logs untouched for so long are removed.")] = 14,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go and remove nothing.")] = False,
) -> None:
    """Remove old policies, checkpoints, logs and runs; the champion and its last predecessors stay.

    Example: clp prune --keep 3 --runs 50 --days 14 --dry-run
    """
    from clp_lightning.promotion import retention

    todo = retention.plan(keep=keep, runs=runs, days=days)
    freed = sum(retention.size(path) for path in todo.paths)
    for path in todo.paths:
        print(path)
    for run in todo.runs:
        print(f"run {run} of the store")
    if not dry_run:
        retention.prune(todo)
    print(
        f"{'would remove' if dry_run else 'removed'} {plural(len(todo.policies), 'policy', 'policies')}, "
        f"{plural(len(todo.checkpoints), 'checkpoint folder')}, {plural(len(todo.logs), 'log')}, "
        f"{plural(len(todo.runs), 'run')}: {freed / 1e6:.1f} MB and what the runs take in the store"
    )


def register(app: typer.Typer) -> None:
    """Add the commands to `clp`."""
    app.command()(promote)
    app.command()(rollback)
    app.command()(evaluate)
    app.command()(prune)
