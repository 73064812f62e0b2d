"""The stage `normalization`: mean and deviation of every reward on samples of the reference policy."""

from pathlib import Path

from clp_lightning import paths
from clp_lightning.config.needs import check_rewards
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import read_split, references
from clp_lightning.files import write_json
from clp_lightning.policy.loading import load_base, placement
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.rewards.reward_set import RewardSet, measure_normalization


def normalization(config: Config) -> None:
    """Measure mean and deviation of every reward on samples of the reference policy, once."""
    for split in ("train", "test"):  # what the methods are trained and evaluated on
        rows = read_split(paths.CORPUS, split)
        known = references(rows)
        check_rewards(config, [(document, known.get(document)) for document in rows["document"]], Path("."))
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
