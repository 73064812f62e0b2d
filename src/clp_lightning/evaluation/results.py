"""One method evaluated into a folder of results: the pipeline's last step before the store, and promotion's second look."""

import shutil
import time
from pathlib import Path
from typing import Any

from clp_lightning import paths
from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import read_split, references
from clp_lightning.evaluation import methods
from clp_lightning.evaluation.sweep import Sweep
from clp_lightning.evaluation.sweep import evaluate as sweep_and_score
from clp_lightning.files import atomic, fingerprint, read_json, write_json
from clp_lightning.rewards.reward_set import Monitors, RewardSet


def evaluate_into(config: Config, method: str, models: Path, out: Path, split: str = "test") -> Any:
    """Evaluate the method that lies in the folder `models`, write its results to the folder `out` and return them.

    `split` test is what is reported; on the split validation settings are chosen.
    """
    started = time.monotonic()
    contestant, points = sweep(config, method, models, split)
    scale = read_json(paths.NORMALIZATION, remedy="run the stage normalization (`dvc repro`)")
    monitors = Monitors.from_config(config)
    frame = sweep_and_score(contestant.policy, points, method=method, monitors=monitors, normalization=scale)
    summary = {
        "method": method,
        "objectives": list(config.objectives),
        "normalization": scale["objectives"],
        "split": split,
        "seed": config.seed,
        "training_seed": config.training.seed,
        "corpus_hash": read_json(paths.CORPUS / "card.json", remedy="run the stage corpus (`dvc repro`)")["sha256"],
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


def sweep(config: Config, method: str, models: Path = paths.MODELS, split: str = "test") -> Any:
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
        None if split == "test" else split,
    )
    prompts = unseen_prompts(config, split)
    points = Sweep(
        prompts=prompts,
        weightings=contestant.weightings,
        rewards=RewardSet.from_config(config, Path("."), paths.NORMALIZATION, references(prompts)),
        samples=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        seed=config.training.seed,
        parts=paths.checkpoints(f"evaluate-{method}", settings, config.generation, config.seed, *inputs),
        best_of=contestant.best_of,
        alpha=contestant.alpha,
    )
    return contestant, points


def unseen_prompts(config: Config, split: str = "test") -> Any:
    """Return the rows of a split, test or validation, that every method is evaluated on."""
    rows = read_split(paths.CORPUS, split)
    return rows.sample(min(config.evaluation.prompts, len(rows)), random_state=config.seed).reset_index(drop=True)


def _weights(config: Config, method: str, models: Path) -> Path:
    """Return the folder of the parameters that a method samples from."""
    derived = config.derived.get(method)
    return models / (derived.of if derived else method)
