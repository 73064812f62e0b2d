"""The pipeline's stages: each reads and writes the files that docs/design.md names, relative to the project folder."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.data import corpus as data
from clp_lightning.data.splits import read_split, references
from clp_lightning.errors import UsageError
from clp_lightning.files import atomic, write_json
from clp_lightning.pipeline import records


def corpus(config: Config) -> None:
    """Read and split the prompts."""
    card = data.build_corpus(config, paths.CORPUS)
    records.metrics("corpus", {key: value for key, value in card.items() if key != "samples"})


def base(config: Config) -> None:
    """Write the base policy as a plain transformers folder."""
    from clp_lightning.policy.base import write_pretrained, write_random

    if config.base.kind == "pretrained":
        write_pretrained(config.base, paths.BASE)
    else:
        train = read_split(paths.CORPUS, "train")
        write_random(config.base, [*train["document"], *train["summary"].dropna()], config.seed, paths.BASE)
    records.metrics("base", {"bytes": (paths.BASE / "model.safetensors").stat().st_size})


def sft(config: Config) -> None:
    """Finetune on the reference answers and merge: the reference policy; without `sft` it is the base as it is."""
    if config.sft is None:
        with atomic(paths.REFERENCE) as beside:
            shutil.copytree(paths.BASE, beside)
        records.curve("sft", [])
        records.metrics("sft", {"steps": 0})
        return
    import torch

    from clp_lightning.policy.loading import load_base, placement
    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.steering.experts import Experts
    from clp_lightning.training.sft import SftModule
    from clp_lightning.training.trainer import fit

    model, tokenizer = load_base(paths.BASE, **placement(config.compute))  # never quantized: the result is merged
    experts = Experts(
        model, conditioning="blocks", experts=1, rank=config.sft.rank, layers=config.layers, seed=config.seed
    )
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    train = read_split(paths.CORPUS, "train").dropna(subset=["summary"])
    if train.empty:
        raise UsageError("sft: the data has no reference answers; name data.reference, or set sft to null")
    module = SftModule(policy, config.sft, train["document"].tolist(), train["summary"].tolist(), config.seed)
    checkpoints = paths.checkpoints(
        "sft", config.sft, config.generation, config.compute.dtype, config.compute.device, config.layers, config.seed,
        paths.CORPUS, paths.BASE,
    )  # fmt: skip
    fit(module, checkpoints=checkpoints, every=max(1, config.sft.steps // 8))
    experts.merge(model, torch.ones(1, device=model.device))
    with atomic(paths.REFERENCE) as beside:
        model.to(dtype=torch.bfloat16).save_pretrained(beside)  # type: ignore[call-arg]
        tokenizer.save_pretrained(beside)
    records.curve("sft", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    records.metrics("sft", {"loss_last_fifth_of_steps": sum(row["loss"] for row in last) / len(last)})
    paths.remove(checkpoints)


def pairs(config: Config, name: str) -> None:
    """Make or read the preference pairs of one learned reward."""
    from clp_lightning.data.pairs import build_pairs

    out = paths.PAIRS / name
    sizes = build_pairs(config, name, paths.CORPUS, out)
    kinds = read_split(out, "train")["kind"].value_counts()
    by_kind = {str(kind): int(count) for kind, count in kinds.items()}
    records.metrics(f"pairs-{name}", {**sizes, "train_by_kind": by_kind})


def reward_model(config: Config, name: str) -> None:
    """Train one learned reward and measure its held-out pairwise accuracy."""
    from clp_lightning.training.reward_model import train_reward_model

    settings, pairs = config.reward_models[name], paths.PAIRS / name
    checkpoints = paths.checkpoints(f"reward_model-{name}", settings, config.seed, pairs)
    metrics = train_reward_model(settings, config.seed, pairs, paths.MODELS / name, checkpoints)
    with atomic(paths.REPORTS / "curves" / f"reward_model-{name}.csv") as beside:
        shutil.copyfile(paths.MODELS / name / "training_curve.csv", beside)
    records.metrics(f"reward_model-{name}", metrics)
    paths.remove(checkpoints)
    heldout = metrics["heldout"]
    print(
        f"clp: {name}: accuracy {heldout['accuracy']:.3f} [{heldout['low']:.3f}, {heldout['high']:.3f}] on "
        f"{heldout['pairs']} held-out pairs",
        file=sys.stderr,
    )


def normalization(config: Config) -> None:
    """Measure mean and deviation of every reward on samples of the reference policy, once."""
    from clp_lightning.policy.loading import load_base, placement
    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.rewards.reward_set import RewardSet, measure_normalization

    model, tokenizer = load_base(paths.REFERENCE, **placement(config.compute), quantization=config.compute.quantization)
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=config.objectives)
    train = read_split(paths.CORPUS, "train")
    chosen = train.sample(min(config.normalization.prompts, len(train)), random_state=config.seed)
    documents = chosen["document"].tolist()
    responses = policy.generate(documents, None, seed=config.seed, batch_size=64)
    rewards = RewardSet.from_config(config, Path("."), None, references(chosen))
    measured = measure_normalization(rewards.raw(documents, responses), config.objectives)
    write_json(
        paths.NORMALIZATION,
        {**measured, "samples": len(documents), "seed": config.seed, "policy": str(paths.REFERENCE)},
    )


def publish(config: Config) -> None:
    """Build the store and the reports from all results."""
    from clp_lightning.report.run import comparison, write_report
    from clp_lightning.store.publishing import publish as publish_store
    from clp_lightning.store.queries import Store

    run = publish_store(paths.RESULTS, paths.STORE, config, records.executions())
    for reason in Store(paths.STORE).methods(run).problem.dropna():
        print(f"clp: warning: left out of the comparison: {reason}", file=sys.stderr)
    compared = comparison(Store(paths.STORE), run)
    write_report(compared, paths.REPORTS)
    records.metrics("publish", {row["method"]: {"hypervolume": row["hypervolume"]} for row in compared["methods"]})


STAGES: dict[str, Callable[[Config], None]] = {
    stage.__name__: stage for stage in (corpus, base, sft, normalization, publish)
}
REWARD_STAGES: dict[str, Callable[[Config, str], None]] = {stage.__name__: stage for stage in (pairs, reward_model)}
METHOD_STAGES = ("train", "evaluate")


def run(name: str, config: Config, method: str | None = None, reward: str | None = None) -> None:
    """Run one stage by name; some need a method, others a reward model. Raises `UsageError` for unknown names."""
    from clp_lightning.pipeline import method_stages

    if name in REWARD_STAGES:
        if reward not in config.reward_models:
            known = ", ".join(config.reward_models) or "none: params.yaml has no reward_models"
            raise UsageError(f"stage {name} needs --reward; one of {known}")
        with records.recorded(f"{name}@{reward}"):
            REWARD_STAGES[name](config, reward)
        return

    if name in METHOD_STAGES:
        if method is None:
            raise UsageError(f"stage {name} needs --method; one of {', '.join(config.compared)}")
        with records.recorded(f"{name}@{method}"):
            getattr(method_stages, name)(config, method)
    elif name in STAGES:
        with records.recorded(name):
            STAGES[name](config)
    else:
        raise UsageError(f"no stage {name!r}; stages: {', '.join([*STAGES, *REWARD_STAGES, *METHOD_STAGES])}")
