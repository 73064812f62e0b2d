"""Bias or variance? `python -m bench.one_token [--project FOLDER] [--json FILE]`; docs/one_token.md says what it is.

The project's reference policy answers prompts with one of a few dozen words, so that J, its optimum and its gradient are
exact. Every method is trained with exact gradients and with sampled ones, as the pipeline trains it.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import argparse
import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.one_token.bed import OBJECTIVES, Bed, count_words, exactly
from bench.one_token.methods import (
    ENUMERATED,
    EXACT,
    GRID,
    METHODS,
    MODULES,
    SAMPLED,
    Values,
    evaluate,
    module,
    run,
    train,
)
from bench.one_token.noise import Halfway, measure
from clp_lightning import paths
from clp_lightning.config.parameters import Training, load_config
from clp_lightning.data.splits import read_split
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.evaluation.prompts import draw_prompts
from clp_lightning.files import write_json
from clp_lightning.oracle.exact import optimum
from clp_lightning.policy.loading import load_base


def main() -> None:
    """Train, print a row for each figure as soon as it is known, and write them."""
    options = _options()
    try:
        bed, training = _bed(options)
    except ClpError as error:
        raise SystemExit(f"error: {error}") from None
    console, report = Console(width=150), _describe(bed, training, options)
    console.print(
        f"{len(bed.prompts.ids)} prompts; words: {', '.join(bed.words)}\nreward correlations under the reference policy: "
        f"{report['correlations']}; optimum: mean J {report['optimum']['mean_j']:.3f} at {report['optimum']['kl']:.2f} nats",
        highlight=False,
    )
    if options.draws:
        _measure_noise(bed, training, options, report)
        console.print(_noise_table(report))
    for gradients, rate, steps, name in itertools.product(
        options.gradients, options.rates, options.steps, options.methods
    ):
        if gradients != SAMPLED and METHODS[name].relabel:
            continue  # what it changes is how samples are used
        seeds = options.seeds[:1] if gradients == EXACT else options.seeds
        settings = {"steps": steps, "learning_rate": rate}
        values = [
            train(bed, METHODS[name], training.model_copy(update=settings | {"seed": seed}), gradients)
            for seed in seeds
        ]
        report["trained"].append({"gradients": gradients, "method": name, **settings, "seeds": _rows(seeds, values)})
        _write(report, options.json)
        console.print(_line(gradients, name, rate, steps, values, report), highlight=False)
    _write(report, options.json)
    _tables(report, console)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.one_token", description=__doc__)
    parser.add_argument(
        "--project", type=Path, default=Path("."), help="folder with params.yaml, a corpus and models/reference"
    )
    parser.add_argument("--split", default="validation", help="where prompts are drawn")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32, help="of a prompt at most")
    parser.add_argument("--steered", type=int, default=1, help="last tokens of a prompt that experts act on")
    parser.add_argument("--words", type=int, default=32, help="allowed answers")
    parser.add_argument("--gradients", nargs="+", choices=MODULES, default=[EXACT, SAMPLED])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, default=[1.5e-3], help="learning rates")
    parser.add_argument("--steps", nargs="+", type=int, default=[26, 78])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4], help="of sampled trainings")
    parser.add_argument(
        "--draws", type=int, default=48, help="minibatches that the gradients' noise is measured on; 0: none"
    )
    parser.add_argument("--json", type=Path, help="file for all figures, written after every row")
    options = parser.parse_args()
    if min(options.steps, default=1) < 2 or options.steered < 1 or options.draws == 1 or not options.seeds:
        parser.error("at least 2 steps, 1 steered token, 2 draws (or 0) and 1 seed")
    return options


def _bed(options: argparse.Namespace) -> tuple[Bed, Training]:
    if not options.project.is_dir():
        raise UsageError(f"--project: no folder {options.project}")
    with contextlib.chdir(options.project):
        config = load_config()
        if config.training.alpha_high is not None or config.training.alpha == 0 or config.training.rank == "full":
            raise UsageError(
                "training: alpha must be above 0, alpha_high null and rank a number here; choose another project"
            )
        documents = draw_prompts(config, options.split, count=options.prompts)["document"].tolist()
        corpus = read_split(paths.CORPUS, "train")
        model, tokenizer = load_base(paths.REFERENCE, dtype=torch.float32, device="cpu")
    generation = config.generation.model_copy(update={"max_prompt_tokens": options.tokens})
    counts = count_words([*map(str, corpus["document"]), *corpus["summary"].dropna()])
    bed = Bed(model, tokenizer, generation, documents, counts, words=options.words, steered=options.steered)
    return bed, config.training


def _describe(bed: Bed, training: Training, options: argparse.Namespace) -> dict[str, Any]:
    """Return the report without any training: the bed, and its optimum."""
    probs = np.exp(exactly(bed.ref_log_probs))
    flat, weights = bed.rewards.reshape(-1, len(OBJECTIVES)), probs.flatten() / len(probs)
    correlations = {
        f"{a}, {b}": round(float((weights * flat[:, i] * flat[:, j]).sum()), 2)
        for (i, a), (j, b) in itertools.combinations(enumerate(OBJECTIVES), 2)
    }
    best = evaluate(bed, optimum(bed.problem(training.alpha), GRID), training.alpha)
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {
        "options": given, "training": training.model_dump(), "words": bed.words, "objectives": OBJECTIVES,
        "entropy": float(-(probs * np.log(probs)).sum(-1).mean()), "correlations": correlations, "grid": GRID.tolist(),
        "optimum": best._asdict() | {"mean_j": best.mean_j, "corners": best.corners}, "trained": [], "noise": [],
    }  # fmt: skip


def _measure_noise(bed: Bed, training: Training, options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measure at the start, and halfway through the longest sampled training."""
    training = training.model_copy(
        update={"steps": max(options.steps), "learning_rate": options.rates[0], "seed": options.seeds[0]}
    )
    kinds = [kind for kind in (SAMPLED, ENUMERATED) if kind in options.gradients]
    for name in options.methods:
        method = METHODS[name]
        with bed.policy(
            conditioning=method.conditioning, shared=method.shared, rank=training.rank, seed=training.seed
        ) as policy:
            for where in ("start", "halfway"):
                if where == "halfway":
                    run(module(policy, method, training, SAMPLED), [Halfway()])
                for kind in kinds:
                    if kind == ENUMERATED and method.relabel:
                        continue
                    measured = measure(policy, method, training, kind, options.draws)
                    for objective, noise in measured.items():
                        row = {"where": where, "method": name, "gradients": kind, "expert": objective}
                        report["noise"].append(row | noise._asdict())
                    _write(report, options.json)


def _rows(seeds: list[int], values: list[Values]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, **each._asdict(), "mean_j": each.mean_j, "corners": each.corners}
        for seed, each in zip(seeds, values, strict=True)
    ]


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        write_json(file, report)


def _cells(
    gradients: str, name: str, rate: float, steps: int, values: list[Values], report: dict[str, Any]
) -> list[str]:
    means = np.array([each.mean_j for each in values])
    spread = f" ({means.std(ddof=1):.3f})" if len(means) > 1 else ""
    corners = np.mean([each.corners for each in values], axis=0)
    return [
        gradients, name, f"{rate:g}", str(steps), f"{means.mean():.3f}{spread}",
        f"{means.mean() / report['optimum']['mean_j']:.1%}", "  ".join(f"{each:.2f}" for each in corners),
        f"{np.mean([each.kl for each in values]):.2f}", f"{np.mean([each.entropy for each in values]):.2f}",
        f"{np.mean([each.seconds for each in values]):.0f}",
    ]  # fmt: skip


def _line(*row: Any) -> str:
    return "  ".join(_cells(*row))


def _tables(report: dict[str, Any], console: Console) -> None:
    best = report["optimum"]
    table = Table(
        "gradients", "method", "rate", "steps", "mean J (sd of seeds)", "of optimum", "J at corners", "KL", "entropy", "s",
        box=None,
    )  # fmt: skip
    top = _cells("", "optimum", 0, 0, [Values(best["j"], best["kl"], best["entropy"], 0)], report)
    table.add_row(*top[:2], "", "", *top[4:-1], "")
    for row in report["trained"]:
        values = [Values(each["j"], each["kl"], each["entropy"], each["seconds"]) for each in row["seeds"]]
        table.add_row(*_cells(row["gradients"], row["method"], row["learning_rate"], row["steps"], values, report))
    console.print(table)


def _noise_table(report: dict[str, Any]) -> Table:
    table = Table(
        "where", "method", "gradients", "expert", "exact norm", "deviation", "along exact (error)", "signal / noise per rollout",
        box=None,
    )  # fmt: skip
    for row in report["noise"]:
        ratio = "none" if row["per_rollout"] is None else f"{row['per_rollout']:.5f}"
        table.add_row(
            row["where"], row["method"], row["gradients"], row["expert"], f"{row['norm']:.2f}", f"{row['deviation']:.2f}",
            f"{row['along']:.2f} ({row['along_error']:.2f})", ratio,
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
