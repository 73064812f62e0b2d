"""The command `clp`."""

import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clp_lightning.cli import champion, data, doctor, policy, report, serve, study
from clp_lightning.errors import ClpError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Params = Annotated[Path, typer.Option(help="Parameter file of the project.")]
policy.register(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"clp-lightning {importlib.metadata.version('clp-lightning')}")
        raise typer.Exit


@app.callback()
def clp(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Finetune one language model for every trade-off between its rewards, and steer it by a weighting when it answers.

    Begin with `clp init FOLDER` (a small working project), then in that folder `clp data` (check it) and `dvc repro` (train it).
    """


@app.command()
def oracle(
    objectives: Annotated[int, typer.Option(min=1, max=6, help="Number of conflicting rewards.")] = 2,
    alpha: Annotated[
        float, typer.Option(min=0.001, max=0.99, help="KL strength; the smaller, the more peaked the optimum.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of testbed and training.")] = 0,
    steps: Annotated[int | None, typer.Option(min=10, help="Training steps of each method; 700.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this method; repeat it for several. smoothed-soups and bone-soups run only if named, or by `all`."
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture to write (.png or .svg); reports/oracle-....png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train methods where the exact optimum is known, and print how close each comes.

    Example: clp oracle --objectives 3 --alpha 0.1 --seed 1 --method clp-full
    """
    from clp_lightning.oracle.report import report

    report(objectives, alpha, seed, steps=steps, picture=picture, as_json=as_json, methods=method or ())


@app.command()
def stage(
    name: Annotated[
        str, typer.Argument(help="corpus, base, sft, pairs, reward_model, normalization, train, evaluate or publish.")
    ],
    method: Annotated[str | None, typer.Option(help="Method, for train and evaluate.")] = None,
    reward: Annotated[str | None, typer.Option(help="Learned reward, for pairs and reward_model.")] = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Run one stage of the pipeline in the current folder; `dvc repro` runs those that are out of date.

    Example: clp stage train --method clp-full
    """
    from clp_lightning.config.parameters import load_config
    from clp_lightning.pipeline import stages

    stages.run(name, load_config(params), method, reward)


for group in (report, champion, data, doctor, serve, study):
    group.register(app)


def main() -> None:
    """Run the command; an error of use is one line on standard error, exit code 2 (usage) or 1."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is ever fetched behind the user's back
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own "Loading weights"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # its offer, on some processors, of a kernel to download; Lightning imports it in every stage
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # Threads that spin long while waiting starve every other job; ones that never spin cost a rollout a tenth of its time.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except ClpError as error:
        print(f"clp: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("clp: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
