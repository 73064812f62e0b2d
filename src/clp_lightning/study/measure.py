"""One evaluated run as rows of the study's tables: J and its error, frontiers, KL, and what axes they are on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.evaluation.on_demand import by_prompt
from clp_lightning.files import fingerprint, read_json
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import cluster_bootstrap
from clp_lightning.frontier.metrics import Array
from clp_lightning.frontier.objective import objective, regularized, split_weightings
from clp_lightning.study.table import axes_hash
from clp_lightning.weightings import lattice


def axes(config: Config, split: str, reference: Path) -> dict[str, Any]:
    """Return what the numbers of a run mean: runs with other axes are not comparable.

    `reference` is the folder of the reference policy's results on the split.
    """
    frame = pd.read_parquet(reference / "results.parquet")
    group = frame.groupby("prompt_id")["group"].first()
    means = frame[[f"reward:{name}" for name in config.objectives]].mean()
    scale = read_json(paths.NORMALIZATION, remedy="run the stage normalization")["objectives"]
    return {
        "objectives": list(config.objectives),
        "alpha": config.training.alpha,
        "split": split,
        "lattice": config.evaluation.weightings,
        "samples_per_prompt": config.evaluation.samples_per_prompt,
        "max_new_tokens": config.generation.max_new_tokens,
        "normalization": scale,
        "reference_policy": fingerprint(paths.REFERENCE),
        "reference_means": [round(float(value), 6) for value in means],
        "reference_point": config.evaluation.reference_point,
        "prompts": [[str(name), str(each)] for name, each in group.items()],
    }


def rows(
    config: Config, arm: str, axes: dict[str, Any], results: Path, run: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the results in a folder say: values of the run's row, and a row per weighting.

    J is (1 - alpha) w.R - alpha KL with normalized rewards and KL in nats per answer; errors are standard errors over groups of
    prompts. A method that was not evaluated on the whole lattice has no mean of J over it.
    """
    weightings, rewards, kl, length = _arrays(results / "results.parquet", axes)
    weights, alphas = split_weightings(weightings, config.training.alpha)
    per_prompt = objective(rewards.swapaxes(0, 1), kl.T, weights, alphas)  # [P, M]
    labels = [group for _, group in axes["prompts"]]
    errors = [_error(per_prompt[:, m], labels, config) for m in range(len(weightings))]
    grid = lattice(len(config.objectives), config.evaluation.weightings)
    at = _positions(weightings, grid) if len(config.objectives) > 1 else list(range(len(weightings)))
    over_grid = per_prompt[:, at].mean(1) if at is not None else None
    means, vectors = rewards.mean(1), regularized(rewards.mean(1), kl.mean(1), alphas)
    floor, origin = [axes["reference_point"]] * len(config.objectives), np.array(axes["reference_means"])
    swept = len(config.objectives) == 1 and config.training.alpha_high is not None  # each KL strength has other axes
    volume = None if swept else frontier.hypervolume(vectors, (1 - config.training.alpha) * origin)
    corners = _positions(weightings, np.eye(len(config.objectives)))
    value = {
        "mean_j": None if over_grid is None else float(over_grid.mean()),
        "mean_j_error": None if over_grid is None else _error(over_grid, labels, config),
        "corners_j": [float(per_prompt[:, m].mean()) for m in corners] if corners is not None else "",
        "worst_objective": float(frontier.worst_objective(means)),
        "hypervolume": frontier.hypervolume(means, floor),
        "hypervolume_above_reference": frontier.hypervolume(means, origin),
        "regularized_hypervolume_above_reference": volume,
        "mean_kl": float(kl.mean()),
        "length": float(length),
        "weightings": len(weightings),
        "prompts": len(labels),
        "groups": len(set(labels)),
        "objectives": len(config.objectives),
        "axes": axes_hash(axes),
    }
    points = [
        {
            "run": run,
            "weighting": [float(x) for x in weightings[m]],
            "j": float(per_prompt[:, m].mean()),
            "j_error": errors[m],
            "kl": float(kl[m].mean()),
            "rewards": [float(x) for x in means[m]],
            "by_prompt": [round(float(x), 3) for x in per_prompt[:, m]],
        }
        for m in range(len(weightings))
    ]
    return value, points


def training(models: Path, arm: str, gradient_clip: float) -> dict[str, float]:
    """Return how a training went: the median norm of its gradients, and the share of its steps that were clipped."""
    norms = pd.read_csv(models / arm / "training_curve.csv").groupby("step")["gradient_norm"].first()
    return {"gradient_norm": float(norms.median()), "clipped": float((norms > gradient_clip).mean())}


def _arrays(file: Path, axes: dict[str, Any]) -> tuple[Array, Array, Array, float]:
    """Return weightings [M, K], rewards [M, P, K] and KL [M, P] per prompt in the order of the axes, and the mean length."""
    frame = pd.read_parquet(file)
    if set(frame["prompt_id"]) != {name for name, _ in axes["prompts"]}:
        raise ClpError(f"{file}: other prompts than the reference policy's; delete its folder and run the study again")
    return *by_prompt(frame, axes["objectives"]), frame["monitor:length"].mean()


def _error(values: Array, labels: list[str], config: Config) -> float:
    """Standard error of the mean of `values` [P] over groups of prompts."""
    bootstrap = cluster_bootstrap(values, labels, config.evaluation.bootstrap_draws, config.seed)
    return bootstrap.error(bootstrap.averages(values[None])[0, 1:])


def _positions(weightings: Array, wanted: Array) -> list[int] | None:
    """Return where each of `wanted` [N, K] is among the weightings [M, K]; None unless all of them are."""
    same = np.abs(weightings[None] - wanted[:, None]).max(-1) < 1e-6
    return same.argmax(1).tolist() if same.any(1).all() else None
