"""One method evaluated into a folder of results: the pipeline's last step before the store, and promotion's second look."""

import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd

from clp_lightning import paths
from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import references
from clp_lightning.evaluation import methods
from clp_lightning.evaluation.prompts import draw_prompts
from clp_lightning.evaluation.sweep import Sweep
from clp_lightning.evaluation.sweep import evaluate as sweep_and_score
from clp_lightning.files import atomic, fingerprint, read_json, write_json
from clp_lightning.rewards.reward_set import Monitors, RewardSet


def evaluate_into(config: Config, method: str, models: Path, out: Path, prompts: pd.DataFrame | None = None) -> Any:
    """Evaluate the method that lies in the folder `models`, write its results to the folder `out` and return them.

    `prompts` are those of the test split that `evaluation` draws unless they are given (rows of `draw_prompts`).
    """
    started = time.monotonic()
    contestant, points = sweep(config, method, models, prompts)
    scale = read_json(paths.NORMALIZATION, remedy="run the stage normalization (`dvc repro`)")
    monitors = Monitors.from_config(config)
    frame = sweep_and_score(contestant.policy, points, method=method, monitors=monitors, normalization=scale)
    computed_on = "; ".join(sorted(frame.pop("computed_on").unique()))
    summary = {
        "method": method,
        "objectives": list(config.objectives),
        "normalization": scale["objectives"],
        "seed": config.seed,
        "training_seed": config.training.seed,
        "corpus_hash": read_json(paths.CORPUS / "card.json", remedy="run the stage corpus (`dvc repro`)")["sha256"],
        "computed_on": computed_on,
        "weights_hash": fingerprint(_weights(config, method, models)),
        "cost": {**contestant.cost, "evaluate_seconds": round(time.monotonic() - started, 1)},
    }
    with atomic(out) as beside:
        beside.mkdir()
        frame.to_parquet(beside / "results.parquet", index=False)
        write_json(beside / "summary.json", summary)
        curve = models / method / "training_curve.csv"
        if curve.is_file():  # the store reads results only
            shutil.copyfile(curve, beside / "training_curve.csv")
    paths.remove(points.parts)
    return frame


def sweep(
    config: Config, method: str, models: Path = paths.MODELS, prompts: pd.DataFrame | None = None
) -> tuple[methods.Contestant, Sweep]:
    """Return the contestant and its sweep; the parts of a sweep lie where the same inputs find them again."""
    settings, contestant = config.evaluation, methods.load(config, method, models)
    inputs = (
        paths.NORMALIZATION,
        paths.CORPUS,
        models / REFERENCE,
        _weights(config, method, models),
        config.training.seed,
        contestant.alpha,
        config.compute,
        config.derived.get(method),
    )
    prompts = draw_prompts(config) if prompts is None else prompts
    points = Sweep(
        prompts=prompts,
        weightings=contestant.weightings,
        rewards=RewardSet.from_config(config, Path("."), paths.NORMALIZATION, references(prompts)),
        samples=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        seed=config.training.seed,
        parts=paths.checkpoints(f"evaluate-{method}", settings, config.generation, *_drawn(prompts), *inputs),
        best_of=contestant.best_of,
        alpha=contestant.alpha,
    )
    return contestant, points


def _drawn(prompts: pd.DataFrame) -> list[str]:
    """Return which prompts these are, in their order: interrupted sweeps of others are not continued."""
    return prompts["id"].astype(str).tolist()


def _weights(config: Config, method: str, models: Path) -> Path:
    """Return the folder of the parameters that a method samples from."""
    derived = config.derived.get(method)
    return models / (derived.of if derived else method)
