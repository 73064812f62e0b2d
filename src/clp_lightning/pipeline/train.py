"""The stage `train`: one method of the table."""

from pathlib import Path

from clp_lightning import paths
from clp_lightning.config.methods import Method
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import read_split, references
from clp_lightning.errors import UsageError
from clp_lightning.files import write_curve
from clp_lightning.pipeline import records
from clp_lightning.policy.loading import computing, load_base, placement
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.rewards.reward_set import RewardSet
from clp_lightning.steering.experts import Experts
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.method_losses import build_loss
from clp_lightning.training.trainer import fit


def train(config: Config, method: str) -> None:
    """Train one method of the table."""
    row, budget = _row(config, method), config.budget(method)
    loss = build_loss(row.loss, Path("."))  # first: a function of the project's may not be there
    listed = row.listed(config.objectives)
    model, tokenizer = load_base(paths.REFERENCE, **placement(config.compute), quantization=config.compute.quantization)
    experts = Experts(
        model,
        conditioning=row.conditioning,
        experts=len(config.objectives) if listed is None else len(listed),
        rank=budget.rank,
        shared=row.shared,
        parameterization=row.parameterization or "experts",
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
    rows = read_split(paths.CORPUS, "train")
    rewards = RewardSet.from_config(config, Path("."), paths.NORMALIZATION, references(rows))
    documents = rows["document"].tolist()
    module = ClpModule(policy, budget, row.weightings, documents, rewards, budget.seed, relabel=row.relabel, loss=loss)
    trained = [paths.MODELS / name for name in config.reward_models]
    inputs = (paths.CORPUS, paths.NORMALIZATION, paths.REFERENCE, *trained, config.compute, config.layers)
    checkpoints = paths.checkpoints(f"train-{method}", budget, row, config.generation, *inputs)
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
    on = {"computed_on": computing(model)}
    policy.save(paths.MODELS / method, base_model="../reference", method=method, seed=budget.seed, cost=cost | on)
    write_curve(module.curve, paths.MODELS / method / "training_curve.csv")
    records.curve(f"train-{method}", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    final = {key: sum(point[key] for point in last) / len(last) for key in ("scalarized_reward", "kl", "length")}
    norms = [point["gradient_norm"] for point in module.curve if "gradient_norm" in point]
    clipped = sum(norm > budget.gradient_clip for norm in norms) / len(norms)  # share of the steps
    records.metrics(f"train-{method}", {**cost, "last_fifth_of_steps": final, "clipped": clipped})
    paths.remove(checkpoints)


def _row(config: Config, method: str) -> Method:
    if method not in config.methods:
        raise UsageError(f"methods.{method}: no such method in params.yaml; it has {', '.join(config.methods)}")
    return config.methods[method]
