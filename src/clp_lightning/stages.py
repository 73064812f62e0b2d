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
from clp_lightning.splits import read_split, references


def corpus(config: Config) -> None:
    """Read and split the prompts."""
    card = data.build_corpus(config, files.CORPUS)
    files.metrics("corpus", {key: value for key, value in card.items() if key != "samples"})


def base(config: Config) -> None:
    """Write the base policy as a plain transformers folder."""
    from clp_lightning.base import write_pretrained, write_random

    if config.base.kind == "pretrained":
        write_pretrained(config.base, files.BASE)
    else:
        train = read_split(files.CORPUS, "train")
        write_random(config.base, [*train["document"], *train["summary"].dropna()], config.seed, files.BASE)
    files.metrics("base", {"bytes": (files.BASE / "model.safetensors").stat().st_size})


def sft(config: Config) -> None:
    """Finetune on the reference answers and merge: the reference policy; without `sft` it is the base as it is."""
    if config.sft is None:
        with atomic(files.REFERENCE) as beside:
            shutil.copytree(files.BASE, beside)
        files.curve("sft", [])
        files.metrics("sft", {"steps": 0})
        return
    import torch

    from clp_lightning.experts import Experts
    from clp_lightning.loading import load_base, placement
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.trainer import fit
    from clp_lightning.training import SftModule

    model, tokenizer = load_base(files.BASE, **placement(config.compute))  # never quantized: the result is merged
    experts = Experts(
        model, conditioning="blocks", experts=1, rank=config.sft.rank, layers=config.layers, seed=config.seed
    )
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    train = read_split(files.CORPUS, "train").dropna(subset=["summary"])
    if train.empty:
        raise UsageError("sft: the data has no reference answers; name data.reference, or set sft to null")
    module = SftModule(policy, config.sft, train["document"].tolist(), train["summary"].tolist(), config.seed)
    checkpoints = files.checkpoints(
        "sft", config.sft, config.generation, config.compute.dtype, config.compute.device, config.layers, config.seed,
        files.CORPUS, files.BASE,
    )  # fmt: skip
    fit(module, checkpoints=checkpoints, every=max(1, config.sft.steps // 8))
    experts.merge(model, torch.ones(1, device=model.device))
    with atomic(files.REFERENCE) as beside:
        model.to(dtype=torch.bfloat16).save_pretrained(beside)  # type: ignore[call-arg]
        tokenizer.save_pretrained(beside)
    files.curve("sft", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    files.metrics("sft", {"loss_last_fifth_of_steps": sum(row["loss"] for row in last) / len(last)})
    files.remove(checkpoints)


def pairs(config: Config, name: str) -> None:
    """Make or read the preference pairs of one learned reward."""
    from clp_lightning.pairs import build_pairs

    out = files.PAIRS / name
    sizes = build_pairs(config, name, files.CORPUS, out)
    kinds = read_split(out, "train")["kind"].value_counts()
    by_kind = {str(kind): int(count) for kind, count in kinds.items()}
    files.metrics(f"pairs-{name}", {**sizes, "train_by_kind": by_kind})


def reward_model(config: Config, name: str) -> None:
    """Train one learned reward and measure its held-out pairwise accuracy."""
    from clp_lightning.reward_model import train_reward_model

    settings, pairs = config.reward_models[name], files.PAIRS / name
    checkpoints = files.checkpoints(f"reward_model-{name}", settings, config.seed, pairs)
    metrics = train_reward_model(settings, config.seed, pairs, files.MODELS / name, checkpoints)
    with atomic(files.REPORTS / "curves" / f"reward_model-{name}.csv") as beside:
        shutil.copyfile(files.MODELS / name / "training_curve.csv", beside)
    files.metrics(f"reward_model-{name}", metrics)
    files.remove(checkpoints)
    heldout = metrics["heldout"]
    print(
        f"clp: {name}: accuracy {heldout['accuracy']:.3f} [{heldout['low']:.3f}, {heldout['high']:.3f}] on "
        f"{heldout['pairs']} held-out pairs",
        file=sys.stderr,
    )


def normalization(config: Config) -> None:
    """Measure mean and deviation of every reward on samples of the reference policy, once."""
    from clp_lightning.loading import load_base, placement
    from clp_lightning.policy import SteerablePolicy
    from clp_lightning.rewards import RewardSet, measure_normalization

    model, tokenizer = load_base(files.REFERENCE, **placement(config.compute), quantization=config.compute.quantization)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=config.objectives)
    train = read_split(files.CORPUS, "train")
    chosen = train.sample(min(config.normalization.prompts, len(train)), random_state=config.seed)
    documents = chosen["document"].tolist()
    responses = policy.generate(documents, None, seed=config.seed, batch_size=64)
    rewards = RewardSet.from_config(config, Path("."), None, references(chosen))
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
    stage.__name__: stage for stage in (corpus, base, sft, normalization, publish)
}
REWARD_STAGES: dict[str, Callable[[Config, str], None]] = {stage.__name__: stage for stage in (pairs, reward_model)}
METHOD_STAGES = ("train", "evaluate")


def run(name: str, config: Config, method: str | None = None, reward: str | None = None) -> None:
    """Run one stage by name; some need a method, others a reward model. Raises `UsageError` for unknown names."""
    from clp_lightning import method_stages

    if name in REWARD_STAGES:
        if reward not in config.reward_models:
            known = ", ".join(config.reward_models) or "none: params.yaml has no reward_models"
            raise UsageError(f"stage {name} needs --reward; one of {known}")
        with files.recorded(f"{name}@{reward}"):
            REWARD_STAGES[name](config, reward)
        return

    if name in METHOD_STAGES:
        if method is None:
            raise UsageError(f"stage {name} needs --method; one of {', '.join(config.compared)}")
        with files.recorded(f"{name}@{method}"):
            getattr(method_stages, name)(config, method)
    elif name in STAGES:
        with files.recorded(name):
            STAGES[name](config)
    else:
        raise UsageError(f"no stage {name!r}; stages: {', '.join([*STAGES, *REWARD_STAGES, *METHOD_STAGES])}")
