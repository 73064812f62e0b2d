"""Every method that is compared, ready to sample from: trained ones, and those derived from them by other decoding."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clp_lightning.config.derived import BestOf, BoneSoups, Dera, KlStrength, LogitMixing, Merged, Scaled
from clp_lightning.config.methods import REFERENCE, MixedVertices
from clp_lightning.config.parameters import Config
from clp_lightning.errors import UsageError
from clp_lightning.evaluation.merged import MergedPolicy
from clp_lightning.files import read_json
from clp_lightning.policy.loading import load_base, placement
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering import mixing
from clp_lightning.weightings import grid

FREE = {"rollouts": 0, "generated_tokens": 0, "train_seconds": 0.0, "stored_parameters": 0, "models": 1}


class Contestant(NamedTuple):
    """A method to evaluate: policy, weightings [N, K] (None: it takes none), cost, answers drawn per kept one, KL strength.

    `alpha` (0..1) is None for a policy that takes no KL strength, or one for each of its weightings.
    """

    policy: SteerablePolicy
    weightings: np.ndarray | None
    cost: dict[str, Any]
    best_of: int = 1
    alpha: float | None = None


def weightings(config: Config, name: str) -> np.ndarray | None:
    """Return the weightings [N, K] at which a method is evaluated; None for the reference policy, which takes none.

    With one reward and `training.alpha_high` they are its weights `1 - alpha` at KL strengths in equal steps.
    """
    if name == REFERENCE:
        return None
    listed = config.methods[name].listed(config.objectives) if name in config.methods else None
    if listed is not None:
        return listed
    settings = config.evaluation
    strongest, weakest = config.training.alpha_high, config.training.alpha
    if strongest is not None and sweeps_alpha(config, name):  # the weight ascends
        return 1 - np.linspace(strongest, weakest, settings.weightings)[:, None]
    return grid(len(config.objectives), settings.weightings, off_grid=settings.off_grid, seed=config.seed)


def sweeps_alpha(config: Config, name: str) -> bool:
    """Whether a method's weightings are KL strengths: `1 - alpha`, the weight of a single reward against the KL term."""
    listed = name in config.methods and config.methods[name].listed(config.objectives) is not None
    return len(config.objectives) == 1 and config.training.alpha_high is not None and not listed


def load(config: Config, name: str, models: Path) -> Contestant:
    """Load a method of `params.yaml`, or the reference policy, from `models`; raises `UsageError` for unknown names."""
    if name not in config.compared:
        raise UsageError(f"method {name!r}: not in params.yaml, which compares {', '.join(config.compared)}")
    points, place = weightings(config, name), placement(config.compute)
    if name == REFERENCE:
        return Contestant(_reference(config, models), points, FREE | {"forward_passes_per_token": 1})
    # the strongest steering that a policy conditioned on the KL strength was trained for, unless the weightings hold it
    fixed = config.training.alpha_high is not None and not sweeps_alpha(config, name)
    alpha = config.training.alpha if fixed else None
    if name in config.methods:
        policy = SteerablePolicy.from_pretrained(models / name, **place)
        return Contestant(policy, points, _cost(models / name, 1), alpha=alpha)
    row = config.derived[name]
    folder = models / row.of
    match row.decoding:
        case LogitMixing():
            policy = SteerablePolicy.from_pretrained(folder, **place, mixture=mixing.experts)
            return Contestant(policy, points, _cost(folder, len(config.objectives)), alpha=alpha)
        case Dera(strength=strength):
            policy = SteerablePolicy.from_pretrained(folder, **place, mixture=mixing.reference(strength))
            return Contestant(policy, points, _cost(folder, 2), alpha=alpha)
        case KlStrength(alpha=chosen):
            return Contestant(SteerablePolicy.from_pretrained(folder, **place), points, _cost(folder, 1), alpha=chosen)
        case Scaled(factor=factor):
            policy = SteerablePolicy.from_pretrained(folder, **place, mixture=mixing.scaled(factor))
            return Contestant(policy, points, _cost(folder, 1), alpha=alpha)
        case BoneSoups(extrapolation=extrapolation):
            trained_on = config.methods[row.of].weightings
            assert isinstance(trained_on, MixedVertices)
            mixture = mixing.bone_soups(trained_on.mixtures(len(config.objectives)), extrapolation)
            policy = SteerablePolicy.from_pretrained(folder, **place, mixture=mixture)
            return Contestant(policy, points, _cost(folder, 1), alpha=alpha)
        case Merged():
            merged = MergedPolicy.from_pretrained(folder, **place)
            assert isinstance(merged, MergedPolicy)
            merged.operator, merged.seed = row.decoding, config.training.seed
            return Contestant(merged, points, _cost(folder, 1), alpha=alpha)
        case BestOf(samples=samples):
            cost = FREE | {"forward_passes_per_token": samples}
            return Contestant(_reference(config, models), points, cost, best_of=samples)


def _reference(config: Config, models: Path) -> SteerablePolicy:
    place = placement(config.compute)
    model, tokenizer = load_base(models / REFERENCE, **place, quantization=config.compute.quantization)
    return SteerablePolicy(model, tokenizer, config.generation, objectives=config.objectives)


def _cost(folder: Path, passes: int) -> dict[str, Any]:
    card = read_json(folder / "clp.json", remedy="run `dvc repro`", keys={"cost": dict})
    return card["cost"] | {"forward_passes_per_token": passes}
