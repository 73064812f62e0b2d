"""The pipeline's stages: each reads and writes the files that docs/design.md names, relative to the project folder."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from clp_lightning import data
from clp_lightning import stage_files as files
from clp_lightning.config import Config
from clp_lightning.errors import UsageError
from clp_lightning.files import atomic, write_json


def corpus(config: Config) -> None:
    """Extract the corpus."""
    files.metrics("corpus", data.build_corpus(config, files.CORPUS))


def base(config: Config) -> None:
    """Write the base policy as a plain transformers folder."""
    from clp_lightning.base import write_packaged, write_random

    if config.base.kind == "gguf":
        write_packaged(config.base, files.BASE)
    else:
        train = data.read_split(files.CORPUS, "train")
        write_random(config.base, [*train["document"], *train["summary"]], config.seed, files.BASE)
    files.metrics("base", {"bytes": (files.BASE / "model.safetensors").stat().st_size})


def sft(config: Config) -> None:
    """Finetune on the reference summaries and merge: the reference policy."""
    import torch

    from clp_lightning.experts import Experts
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.trainer import fit
    from clp_lightning.training import SftModule

    model, tokenizer = load_base(files.BASE)
    experts = Experts(model, conditioning="blocks", experts=1, rank=config.sft.rank, seed=config.seed)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    train = data.read_split(files.CORPUS, "train")
    module = SftModule(policy, config.sft, train["document"].tolist(), train["summary"].tolist(), config.seed)
    checkpoints = files.checkpoints("sft", config.sft, config.generation, config.seed, files.CORPUS, files.BASE)
    fit(module, checkpoints=checkpoints, every=max(1, config.sft.steps // 8))
    experts.merge(model, torch.ones(1, device=model.device))
    with atomic(files.REFERENCE) as beside:
        model.to(dtype=torch.bfloat16).save_pretrained(beside)  # type: ignore[call-arg]
        tokenizer.save_pretrained(beside)
    files.curve("sft", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    files.metrics("sft", {"loss_last_fifth_of_steps": sum(row["loss"] for row in last) / len(last)})
    files.remove(checkpoints)


def pairs(config: Config) -> None:
    """Build preference pairs for the learned reward."""
    from clp_lightning.pairs import build_pairs

    sizes = build_pairs(config, files.CORPUS, files.PAIRS)
    kinds = data.read_split(files.PAIRS, "train")["kind"].value_counts()
    files.metrics("pairs", {**sizes, "train_by_kind": {str(kind): int(count) for kind, count in kinds.items()}})


def reward_model(config: Config) -> None:
    """Train the learned reward and measure its held-out pairwise accuracy."""
    from clp_lightning.reward_model import train_reward_model

    checkpoints = files.checkpoints("reward_model", config.reward_model, config.seed, files.PAIRS)
    metrics = train_reward_model(config, files.PAIRS, files.REWARD_MODEL, checkpoints)
    curve = files.REWARD_MODEL / "training_curve.csv"
    with atomic(files.REPORTS / "curves" / "reward_model.csv") as beside:
        shutil.copyfile(curve, beside)
    files.metrics("reward_model", metrics)
    files.remove(checkpoints)


def normalization(config: Config) -> None:
    """Measure mean and deviation of every reward on samples of the reference policy, once."""
    from clp_lightning.loading import load_base
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import RewardSet, measure_normalization

    model, tokenizer = load_base(files.REFERENCE)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=config.objectives)
    train = data.read_split(files.CORPUS, "train")
    chosen = train.sample(min(config.normalization.prompts, len(train)), random_state=config.seed)
    documents = chosen["document"].tolist()
    responses = policy.generate(documents, None, seed=config.seed, batch_size=64)
    rewards = RewardSet.from_config(config, Path("."), None)
    measured = measure_normalization(rewards.raw(documents, responses), config.objectives)
    write_json(
        files.NORMALIZATION,
        {**measured, "samples": len(documents), "seed": config.seed, "policy": str(files.REFERENCE)},
    )


def publish(config: Config) -> None:
    """Build the store and the reports from all results."""
    from clp_lightning.report import comparison, write_report
    from clp_lightning.store import Store
    from clp_lightning.store_publish import publish as publish_store

    run = publish_store(files.RESULTS, files.STORE, config, files.executions())
    for reason in Store(files.STORE).methods(run).problem.dropna():
        print(f"clp: warning: left out of the comparison: {reason}", file=sys.stderr)
    compared = comparison(Store(files.STORE), run)
    write_report(compared, files.REPORTS)
    files.metrics("publish", {row["method"]: {"hypervolume": row["hypervolume"]} for row in compared["methods"]})


STAGES: dict[str, Callable[[Config], None]] = {
    stage.__name__: stage for stage in (corpus, base, sft, pairs, reward_model, normalization, publish)
}
METHOD_STAGES = ("train", "evaluate")


def run(name: str, config: Config, method: str | None = None) -> None:
    """Run one stage by name; `train` and `evaluate` need a method. Raises `UsageError` for unknown names."""
    from clp_lightning import method_stages

    if name in METHOD_STAGES:
        if method is None:
            raise UsageError(f"stage {name} needs --method; one of {', '.join(config.compared)}")
        with files.recorded(f"{name}@{method}"):
            getattr(method_stages, name)(config, method)
    elif name in STAGES:
        with files.recorded(name):
            STAGES[name](config)
    else:
        raise UsageError(f"no stage {name!r}; stages: {', '.join([*STAGES, *METHOD_STAGES])}")
