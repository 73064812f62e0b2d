"""The pipeline's stages: each reads and writes the files that docs/design.md names, relative to the project folder."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clp_lightning import data
from clp_lightning.config import Config
from clp_lightning.errors import UsageError
from clp_lightning.files import atomic, fingerprint, read_json, write_json

CORPUS, PAIRS, NORMALIZATION = Path("data/corpus"), Path("data/pairs"), Path("data/normalization.json")
BASE, REFERENCE, REWARD_MODEL = Path("models/base"), Path("models/reference"), Path("models/informativeness")
RESULTS, STORE, REPORTS = Path("results"), Path("frontier.duckdb"), Path("reports")


def corpus(config: Config) -> None:
    """Extract the corpus."""
    _metrics("corpus", data.build_corpus(config, CORPUS))


def base(config: Config) -> None:
    """Write the base policy as a plain transformers folder."""
    from clp_lightning.base import write_packaged, write_random

    if config.base.kind == "gguf":
        write_packaged(config.base, BASE)
    else:
        train = data.read_split(CORPUS, "train")
        write_random(config.base, [*train["document"], *train["summary"]], config.seed, BASE)
    _metrics("base", {"bytes": (BASE / "model.safetensors").stat().st_size})


def sft(config: Config) -> None:
    """Finetune on the reference summaries and merge: the reference policy."""
    import torch

    from clp_lightning.experts import Experts
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.trainer import fit
    from clp_lightning.training import SftModule

    model, tokenizer = load_base(BASE)
    experts = Experts(model, conditioning="blocks", experts=1, rank=config.sft.rank, seed=config.seed)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    train = data.read_split(CORPUS, "train")
    module = SftModule(policy, config.sft, train["document"].tolist(), train["summary"].tolist(), config.seed)
    checkpoints = _checkpoints("sft", config.sft, config.generation, config.seed, CORPUS, BASE)
    fit(module, checkpoints=checkpoints, every=max(1, config.sft.steps // 8))
    experts.merge(model, torch.ones(1, device=model.device))
    with atomic(REFERENCE) as beside:
        model.to(dtype=torch.bfloat16).save_pretrained(beside)  # type: ignore[call-arg]
        tokenizer.save_pretrained(beside)
    _curve("sft", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    _metrics("sft", {"loss_last_fifth_of_steps": sum(row["loss"] for row in last) / len(last)})
    _remove(checkpoints)


def pairs(config: Config) -> None:
    """Build preference pairs for the learned reward."""
    from clp_lightning.pairs import build_pairs

    sizes = build_pairs(config, CORPUS, PAIRS)
    kinds = data.read_split(PAIRS, "train")["kind"].value_counts()
    _metrics("pairs", {**sizes, "train_by_kind": {str(kind): int(count) for kind, count in kinds.items()}})


def reward_model(config: Config) -> None:
    """Train the learned reward and measure its held-out pairwise accuracy."""
    from clp_lightning.reward_model import train_reward_model

    checkpoints = _checkpoints("reward_model", config.reward_model, config.seed, PAIRS)
    metrics = train_reward_model(config, PAIRS, REWARD_MODEL, checkpoints)
    curve = REWARD_MODEL / "training_curve.csv"
    with atomic(REPORTS / "curves" / "reward_model.csv") as beside:
        shutil.copyfile(curve, beside)
    _metrics("reward_model", metrics)
    _remove(checkpoints)


def normalization(config: Config) -> None:
    """Measure mean and deviation of every reward on samples of the reference policy, once."""
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import RewardSet, measure_normalization

    model, tokenizer = load_base(REFERENCE)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=config.objectives)
    train = data.read_split(CORPUS, "train")
    chosen = train.sample(min(config.normalization.prompts, len(train)), random_state=config.seed)
    documents = chosen["document"].tolist()
    responses = policy.generate(documents, None, seed=config.seed, batch_size=64)
    rewards = RewardSet.from_config(config, Path("."), None)
    measured = measure_normalization(rewards.raw(documents, responses), config.objectives)
    write_json(NORMALIZATION, {**measured, "samples": len(documents), "seed": config.seed, "policy": str(REFERENCE)})


def train(config: Config, method: str) -> None:
    """Train one method of the table."""
    from clp_lightning.experts import Experts
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import RewardSet
    from clp_lightning.trainer import fit, write_curve
    from clp_lightning.training import ClpModule

    row, budget = _method(config, method), config.training
    model, tokenizer = load_base(REFERENCE)
    experts = Experts(
        model,
        conditioning=row.conditioning,
        experts=len(config.objectives),
        rank=budget.rank,
        shared=row.shared,
        seed=config.seed,
    )
    policy = SteerablePolicy(
        model,
        tokenizer,
        config.generation,
        objectives=config.objectives,
        experts=experts,
        prompted=row.prompted,
        takes_alpha=budget.alpha_high is not None,
    )
    rewards = RewardSet.from_config(config, Path("."), NORMALIZATION)
    documents = data.read_split(CORPUS, "train")["document"].tolist()
    module = ClpModule(policy, budget, row.weightings, documents, rewards, config.seed)
    inputs = (CORPUS, NORMALIZATION, REFERENCE, REWARD_MODEL)
    checkpoints = _checkpoints(f"train-{method}", budget, row, config.generation, config.seed, *inputs)
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
        "models": 1,
    }
    policy.save(Path("models") / method, base_model="../reference", method=method, seed=config.seed, cost=cost)
    write_curve(module.curve, Path("models") / method / "training_curve.csv")
    _curve(f"train-{method}", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    final = {key: sum(point[key] for point in last) / len(last) for key in ("scalarized_reward", "kl", "length")}
    _metrics(f"train-{method}", {**cost, "last_fifth_of_steps": final})
    _remove(checkpoints)


def evaluate(config: Config, method: str) -> None:
    """Sample one method, or `reference`, on unseen services at every weighting of the grid."""
    from clp_lightning.evaluation import evaluate as sweep
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import Monitors, RewardSet
    from clp_lightning.weightings import lattice

    started, settings = time.monotonic(), config.evaluation
    scale = read_json(NORMALIZATION, remedy="run the stage normalization (`dvc repro`)")
    if method == "reference":
        policy = SteerablePolicy(*load_base(REFERENCE), config.generation, objectives=config.objectives)
        grid, inputs, cost = (
            None,
            [REFERENCE],
            {"rollouts": 0, "generated_tokens": 0, "train_seconds": 0.0, "stored_parameters": 0, "models": 1},
        )
    else:
        _method(config, method)
        folder = Path("models") / method
        policy = SteerablePolicy.from_pretrained(folder)
        grid = lattice(len(config.objectives), settings.weightings)
        inputs, cost = [REFERENCE, folder], read_json(folder / "clp.json", remedy="run `dvc repro`")["cost"]
    card = read_json(CORPUS / "card.json", remedy="run the stage corpus (`dvc repro`)")
    test = data.read_split(CORPUS, "test")
    prompts = test.sample(min(settings.prompts, len(test)), random_state=config.seed).reset_index(drop=True)
    parts = _checkpoints(f"evaluate-{method}", settings, config.generation, config.seed, NORMALIZATION, CORPUS, *inputs)
    frame = sweep(
        policy,
        method=method,
        weightings=grid,
        prompts=prompts,
        rewards=RewardSet.from_config(config, Path("."), NORMALIZATION),
        monitors=Monitors.from_config(config),
        normalization=scale,
        samples=settings.samples_per_prompt,
        batch_size=settings.batch_size,
        seed=config.seed,
        parts=parts,
        alpha=config.training.alpha if policy.takes_alpha else None,  # the strongest steering that it was trained for
    )
    summary = {
        "method": method,
        "objectives": list(config.objectives),
        "normalization": scale["objectives"],
        "seed": config.seed,
        "corpus_hash": card["sha256"],
        "cost": {**cost, "evaluate_seconds": round(time.monotonic() - started, 1)},
    }
    with atomic(RESULTS / method) as beside:
        beside.mkdir()
        frame.to_parquet(beside / "results.parquet", index=False)
        write_json(beside / "summary.json", summary)
    columns = [name for name in frame.columns if name.startswith(("reward:", "monitor:"))]
    _metrics(f"evaluate-{method}", {name: float(frame[name].mean()) for name in columns})
    _remove(parts)


def publish(config: Config) -> None:
    """Build the store and the reports from all results."""
    from clp_lightning.report import comparison, write_report
    from clp_lightning.store import Store
    from clp_lightning.store_publish import publish as publish_store

    run = publish_store(RESULTS, STORE, config)
    compared = comparison(Store(STORE), run)
    write_report(compared, REPORTS)
    _metrics("publish", {row["method"]: {"hypervolume": row["hypervolume"]} for row in compared["methods"]})


STAGES: dict[str, Callable[[Config], None]] = {
    stage.__name__: stage for stage in (corpus, base, sft, pairs, reward_model, normalization, publish)
}
METHOD_STAGES: dict[str, Callable[[Config, str], None]] = {"train": train, "evaluate": evaluate}


def run(name: str, config: Config, method: str | None = None) -> None:
    """Run one stage by name; `train` and `evaluate` need a method. Raises `UsageError` for unknown names."""
    if name in METHOD_STAGES:
        if method is None:
            raise UsageError(f"stage {name} needs --method; one of {', '.join(config.methods)}")
        METHOD_STAGES[name](config, method)
    elif name in STAGES:
        STAGES[name](config)
    else:
        raise UsageError(f"no stage {name!r}; stages: {', '.join([*STAGES, *METHOD_STAGES])}")


def _method(config: Config, method: str) -> Any:
    if method not in config.methods:
        raise UsageError(f"methods.{method}: no such method in params.yaml; it has {', '.join(config.methods)}")
    return config.methods[method]


def _checkpoints(stage: str, *parts: Any) -> Path:
    """Return the folder of a stage's checkpoints for exactly these parameters and inputs."""
    plain = [part.model_dump() if hasattr(part, "model_dump") else part for part in parts]
    folder = Path("checkpoints") / f"{stage}-{fingerprint(*plain)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _metrics(stage: str, values: dict[str, Any]) -> None:
    write_json(REPORTS / "metrics" / f"{stage}.json", values)


def _curve(stage: str, rows: list[dict[str, float]]) -> None:
    from clp_lightning.trainer import write_curve

    with atomic(REPORTS / "curves" / f"{stage}.csv") as beside:
        write_curve(rows, beside)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
