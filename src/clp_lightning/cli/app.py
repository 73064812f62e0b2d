"""The command `clp`."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clp_lightning.cli import champion as cli_champion
from clp_lightning.cli import data as cli_data
from clp_lightning.cli import doctor as cli_doctor
from clp_lightning.cli import report as cli_report
from clp_lightning.cli import serve as cli_serve
from clp_lightning.config.parameters import load_config
from clp_lightning.errors import ClpError, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Params = Annotated[Path, typer.Option(help="Parameter file of the project.")]


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Texts to work on; without any, one per line of standard input.")
    ] = None,
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    weighting: Annotated[
        list[str] | None,
        typer.Option(help="Trade-off, e.g. informativeness=0.8,brevity=0.2; repeat it to compare several."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 is greedy: the same text each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; the model's own limit by default.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="KL strength, for a policy that takes one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Precision: auto (float32 on a CPU), float32, bfloat16 or float16.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer.")] = False,
) -> None:
    """Generate text at a trade-off.

    Example: clp generate --model models/clp-full --weighting informativeness=0.8,brevity=0.2 "create bucket: The name of ..."
    """
    texts = prompts if prompts else _standard_input()
    for row, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"prompt {row + 1} is empty; give some text to work on")
    from clp_lightning.promotion import champion

    model = champion.resolve(model)
    objectives = _objectives(model)
    from clp_lightning import weightings as simplex

    if not weighting:
        example = simplex.describe([1 / len(objectives)] * len(objectives), objectives)
        raise UsageError(f"give at least one --weighting over {', '.join(objectives)}, e.g. {example}")
    rows = [simplex.parse(text, objectives) for text in weighting]  # checked before the model is loaded

    import numpy as np

    from clp_lightning.policy.loading import answering_dtype
    from clp_lightning.policy.steerable import SteerablePolicy

    policy = SteerablePolicy.from_pretrained(model, dtype=answering_dtype(dtype))

    answers = policy.generate(
        [text for text in texts for _ in rows],
        np.tile(np.stack(rows), (len(texts), 1)),
        alphas=alpha,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    trade_offs = [simplex.describe(row.tolist(), objectives) for row in rows]
    asked = [(text, trade_off) for text in texts for trade_off in trade_offs]
    if as_json:
        for (text, trade_off), answer in zip(asked, answers, strict=True):
            print(json.dumps({"prompt": text, "weighting": trade_off, "response": answer}, ensure_ascii=False))
    elif len(rows) == 1:
        print("\n".join(answers))
    else:
        table = Table("document", "weighting", "answer", show_lines=True)
        for (text, trade_off), answer in zip(asked, answers, strict=True):
            # Text: brackets of a document are no markup
            table.add_row(Text(text if trade_off == trade_offs[0] else ""), trade_off, Text(answer))
        Console().print(table)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; it is replaced.")],
    weighting: Annotated[str, typer.Option(help="Trade-off to keep, e.g. informativeness=0.8,brevity=0.2.")],
    model: Annotated[
        Path, typer.Option(help="Folder of a steerable policy, or the word champion: the policy in use.")
    ] = Path("models/clp-full"),
    format: Annotated[
        str, typer.Option(help="hf: a whole model for transformers; peft: an adapter of the base.")
    ] = "hf",
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="KL strength, for a policy that takes one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the files: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write one trade-off of a policy as a plain model that other tools load.

    Example: clp export --weighting informativeness=0.8,brevity=0.2 --format hf build/exported
    """
    from clp_lightning.promotion import champion

    model = champion.resolve(model)
    objectives = _objectives(model)
    from clp_lightning import weightings as simplex

    row = simplex.parse(weighting, objectives)

    from clp_lightning.policy.export import load_dtype
    from clp_lightning.policy.steerable import SteerablePolicy

    SteerablePolicy.from_pretrained(model, dtype=load_dtype(dtype)).export(row, out, format, alpha=alpha)
    loader = "transformers" if format == "hf" else "peft"
    print(f"wrote {out} at {simplex.describe(row.tolist(), objectives)}; {loader} loads it")


@app.command()
def oracle(
    objectives: Annotated[int, typer.Option(min=1, max=6, help="Number of conflicting rewards.")] = 2,
    alpha: Annotated[
        float, typer.Option(min=0.001, max=0.99, help="KL strength; the smaller, the more peaked the optimum.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of testbed and training.")] = 0,
    steps: Annotated[int | None, typer.Option(min=10, help="Training steps of each method; 700.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture to write (.png or .svg); reports/oracle-....png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Train every method where the exact optimum is known, and print how close each comes.

    Example: clp oracle --objectives 3 --alpha 0.1 --seed 1
    """
    from clp_lightning.oracle import report as oracle_report

    oracle_report.report(objectives, alpha, seed, steps=steps, picture=picture, as_json=as_json)


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
    from clp_lightning.pipeline import stages

    stages.run(name, load_config(params), method, reward)


cli_report.register(app)
cli_champion.register(app)
cli_data.register(app)
cli_doctor.register(app)
cli_serve.register(app)


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


def _objectives(model: Path) -> list[str]:
    """Read a policy's objectives from its card, before anything heavy is loaded."""
    from clp_lightning.files import read_json

    if not (model / "clp.json").is_file():
        raise ClpError(
            f"no steerable model at {model}; `make repro` writes models/clp-full, or name a folder with --model"
        )
    return read_json(model / "clp.json", remedy="run `make repro` to write it again")["objectives"]


def _standard_input() -> list[str]:
    if sys.stdin.isatty():
        raise UsageError("no prompt; give texts as arguments or one per line on standard input")
    lines = [line.rstrip("\n") for line in sys.stdin]
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageError("prompt is empty: standard input held no text; give one text per line")
    return texts


if __name__ == "__main__":
    main()
