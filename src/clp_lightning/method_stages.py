"""The stages of one method: `train` it, and `evaluate` it on unseen prompts; heavy libraries are imported when they run."""

import shutil
import time
from pathlib import Path
from typing import Any

from clp_lightning import stage_files as files
from clp_lightning.config import Config
from clp_lightning.config_methods import REFERENCE, Method
from clp_lightning.errors import UsageError
from clp_lightning.files import atomic, fingerprint, read_json, write_json
from clp_lightning.splits import read_split, references

MODELS = files.MODELS


def train(config: Config, method: str) -> None:
    """Train one method of the table."""
    from clp_lightning.experts import Experts
    from clp_lightning.loading import load_base, placement
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import RewardSet
    from clp_lightning.trainer import fit, write_curve
    from clp_lightning.training import ClpModule

    row, budget = _row(config, method), config.training
    listed = row.listed(config.objectives)
    model, tokenizer = load_base(files.REFERENCE, **placement(config.compute), quantization=config.compute.quantization)
    experts = Experts(
        model,
        conditioning=row.conditioning,
        experts=len(config.objectives) if listed is None else len(listed),
        rank=budget.rank,
        shared=row.shared,
        layers=config.layers,
        seed=budget.seed,
    )
    policy = SteerablePolicy(
        model,
        tokenizer,
        config.generation,
        objectives=config.objectives,
        experts=experts,
        prompted=row.prompted,
        takes_alpha=budget.alpha_high is not None,
        listed=listed,
    )
    rows = read_split(files.CORPUS, "train")
    rewards = RewardSet.from_config(config, Path("."), files.NORMALIZATION, references(rows))
    documents = rows["document"].tolist()
    module = ClpModule(policy, budget, row.weightings, documents, rewards, budget.seed)
    trained = [files.MODELS / name for name in config.reward_models]
    inputs = (files.CORPUS, files.NORMALIZATION, files.REFERENCE, *trained, config.compute, config.layers)
    checkpoints = files.checkpoints(f"train-{method}", budget, row, config.generation, *inputs)
    fit(
        module,
        checkpoints=checkpoints,
        every=budget.checkpoint_every,
        gradient_clip=budget.gradient_clip,
        devices=budget.devices,
    )
    if not module.trainer.is_global_zero:
        return
    groups = budget.steps * budget.accumulate * budget.devices * budget.prompts_per_step
    cost = {
        "rollouts": groups * budget.samples_per_prompt,
        "generated_tokens": module.generated_tokens,
        "train_seconds": round(sum(row["seconds"] for row in module.curve), 1),
        "stored_parameters": sum(tensor.numel() for tensor in experts.tensors().values()),
        "models": 1 if listed is None else len(listed),
    }
    policy.save(MODELS / method, base_model="../reference", method=method, seed=budget.seed, cost=cost)
    write_curve(module.curve, MODELS / method / "training_curve.csv")
    files.curve(f"train-{method}", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    final = {key: sum(point[key] for point in last) / len(last) for key in ("scalarized_reward", "kl", "length")}
    files.metrics(f"train-{method}", {**cost, "last_fifth_of_steps": final})
    files.remove(checkpoints)


def evaluate(config: Config, method: str) -> None:
    """Sample one method, or `reference`, on the test prompts at every weighting of the grid."""
    frame = evaluate_into(config, method, MODELS, files.RESULTS / method)
    columns = [name for name in frame.columns if name.startswith(("reward:", "monitor:"))]
    files.metrics(f"evaluate-{method}", {name: float(frame[name].mean()) for name in columns})


def evaluate_into(config: Config, method: str, models: Path, out: Path) -> Any:
    """Evaluate the method that lies in the folder `models`, write its results to the folder `out` and return them."""
    from clp_lightning.evaluation import evaluate as sweep_and_score
    from clp_lightning.rewards import Monitors

    started = time.monotonic()
    contestant, points = sweep(config, method, models)
    scale = read_json(files.NORMALIZATION, remedy="run the stage normalization (`dvc repro`)")
    monitors = Monitors.from_config(config)
    frame = sweep_and_score(contestant.policy, points, method=method, monitors=monitors, normalization=scale)
    summary = {
        "method": method,
        "objectives": list(config.objectives),
        "normalization": scale["objectives"],
        "seed": config.seed,
        "training_seed": config.training.seed,
        "corpus_hash": read_json(files.CORPUS / "card.json", remedy="run the stage corpus (`dvc repro`)")["sha256"],
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
    files.remove(points.parts)
    return frame


def sweep(config: Config, method: str, models: Path = MODELS) -> Any:
    """Return the contestant and its sweep; the parts of a sweep lie where the same inputs find them again."""
    from clp_lightning import methods
    from clp_lightning.evaluation import Sweep
    from clp_lightning.rewards import RewardSet

    settings, contestant = config.evaluation, methods.load(config, method, models)
    inputs = (
        files.NORMALIZATION,
        files.CORPUS,
        models / REFERENCE,
        _weights(config, method, models),
        config.training.seed,
        contestant.alpha,
        config.compute,
        config.derived.get(method),
    )
    prompts = test_prompts(config)
    points = Sweep(
        prompts=prompts,
        weightings=contestant.weightings,
        rewards=RewardSet.from_config(config, Path("."), files.NORMALIZATION, references(prompts)),
        samples=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        seed=config.training.seed,
        parts=files.checkpoints(f"evaluate-{method}", settings, config.generation, config.seed, *inputs),
        best_of=contestant.best_of,
        alpha=contestant.alpha,
    )
    return contestant, points


def test_prompts(config: Config) -> Any:
    """Return the rows of the test split that every method is evaluated on."""
    test = read_split(files.CORPUS, "test")
    return test.sample(min(config.evaluation.prompts, len(test)), random_state=config.seed).reset_index(drop=True)


def _weights(config: Config, method: str, models: Path) -> Path:
    """Return the folder of the parameters that a method samples from."""
    derived = config.derived.get(method)
    return models / (derived.of if derived else method)


def _row(config: Config, method: str) -> Method:
    if method not in config.methods:
        raise UsageError(f"methods.{method}: no such method in params.yaml; it has {', '.join(config.methods)}")
    return config.methods[method]
