"""`clp evaluate`: any policy at any weightings, on the test prompts or on a user's own."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clp_lightning import paths, weightings
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import references
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.files import read_json, utf8
from clp_lightning.frontier.bootstrap import cluster_bootstrap
from clp_lightning.frontier.objective import objective, split_weightings
from clp_lightning.weightings import on_lattice


def own_prompts(path: Path) -> pd.DataFrame:
    """Read prompts, one per line of a UTF-8 file, in the shape of the corpus; there is no reference summary."""
    try:
        lines = utf8(path.read_bytes(), path).splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); name a UTF-8 file with one prompt per line"
        ) from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path}: no prompt in it; write one per line")
    return pd.DataFrame({"id": [f"line-{i + 1}" for i in range(len(texts))], "document": texts, "summary": None})


def evaluate_policy(
    config: Config,
    model: Path,
    points: np.ndarray,
    prompts: pd.DataFrame | None,
    *,
    seed: int = 0,
    split: str = "test",
) -> pd.DataFrame:
    """Return one row per (weighting, prompt) with response, rewards and monitors; columns as in docs/design.md.

    `points` [N, K] are the weightings. Without `prompts` those of `split`, test or validation, are taken as in the pipeline.
    Raises `ClpError` when the policy has other objectives than params.yaml. Prompts that are cut are noted on stderr.
    """
    from clp_lightning.evaluation.prompts import draw_prompts
    from clp_lightning.evaluation.sweep import Sweep, evaluate
    from clp_lightning.policy.loading import placement
    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.rewards.reward_set import Monitors, RewardSet

    policy = SteerablePolicy.from_pretrained(model, device=placement(config.compute)["device"])
    if policy.objectives != config.objectives:
        raise ClpError(
            f"{model} steers {', '.join(policy.objectives)}, but params.yaml has the rewards {', '.join(config.objectives)}"
        )
    settings = config.evaluation
    chosen = draw_prompts(config, split) if prompts is None else prompts
    if note := policy.template.check(chosen["document"].tolist()):
        print(f"clp: warning: {note}", file=sys.stderr)
    rewards = RewardSet.from_config(config, Path("."), paths.NORMALIZATION, references(chosen))
    with tempfile.TemporaryDirectory() as parts:
        sweep = Sweep(
            chosen, points, rewards, settings.samples_per_prompt, settings.batch_size, seed, Path(parts),
            alpha=config.training.alpha if policy.takes_alpha else None,
        )  # fmt: skip
        scale = read_json(paths.NORMALIZATION, remedy="run the stage normalization (`dvc repro`)")
        monitors = Monitors.from_config(config)
        frame = evaluate(policy, sweep, method=model.name, monitors=monitors, normalization=scale)
    return frame


def summarize(frame: pd.DataFrame, objectives: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return means per weighting: `weighting`, `rewards` with 95 % `intervals` (Student's t over prompts), `monitors`.

    With a single prompt there is no interval (None); a monitor without values is None.
    """
    rows = []
    for _, group in frame.groupby("weighting_id", sort=True):
        per_prompt = group.groupby("prompt_id")[[f"reward:{name}" for name in objectives]].mean()
        rewards = {name: float(per_prompt[f"reward:{name}"].mean()) for name in objectives}
        rows.append({
            "weighting": {name: float(group[f"w:{name}"].iloc[0]) for name in objectives},
            "rewards": rewards,
            "intervals": {name: _interval(per_prompt[f"reward:{name}"]) for name in objectives},
            "monitors": {
                column.removeprefix("monitor:"): None if group[column].isna().all() else float(group[column].mean())
                for column in group.columns if column.startswith("monitor:")
            },
        })  # fmt: skip
    return rows


def by_prompt(frame: pd.DataFrame, objectives: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weightings [M, K], and the means of each prompt's answers: rewards [M, P, K] and KL [M, P], prompts sorted."""
    weightings = frame.groupby("weighting_id")[[f"w:{name}" for name in objectives]].first().to_numpy()
    columns = [*(f"reward:{name}" for name in objectives), "monitor:kl"]
    means = (
        frame.groupby(["weighting_id", "prompt_id"])[columns]
        .mean()
        .to_numpy()
        .reshape(len(weightings), -1, len(columns))
    )
    return weightings, means[..., :-1], means[..., -1]


def measure_objective(frame: pd.DataFrame, config: Config, *, grid: bool) -> dict[str, Any]:
    """Return what training maximizes, J(w) = (1 - alpha) w.R - alpha KL with KL in nats per answer, as `clp frontier` has it.

    `by_weighting`: `weighting`, `j` with its 95 % `interval` and `kl`; `mean_j`, its `mean_j_interval` and `mean_kl` are over
    all of them, with `grid` over the evenly spaced ones. Intervals are over groups of prompts (`frontier.bootstrap`), None
    when all are of one.
    """
    names, (weightings, rewards, kl) = config.objectives, by_prompt(frame, config.objectives)
    weights, alphas = split_weightings(weightings, config.training.alpha)
    j = objective(rewards.swapaxes(0, 1), kl.T, weights, alphas).T
    over = np.ones(len(weightings), dtype=bool)
    if grid and len(names) > 1:
        over = on_lattice(weightings, config.evaluation.weightings)
    groups = frame.groupby("prompt_id")["group"].first()
    rows = np.vstack([j, j[over].mean(0)])
    intervals: list[list[float] | None] = [None] * len(rows)
    if groups.nunique() > 1:
        bootstrap = cluster_bootstrap(rows, groups.to_numpy(), config.evaluation.bootstrap_draws, config.seed)
        intervals = [list(bootstrap.interval(versions)) for versions in bootstrap.averages(rows)]
    return {
        "alpha": config.training.alpha,
        "mean_j": float(rows[-1].mean()),
        "mean_j_interval": intervals[-1],
        "mean_kl": float(kl[over].mean()),
        "by_weighting": [
            {
                "weighting": dict(zip(names, map(float, weightings[m]), strict=True)),
                "j": float(j[m].mean()),
                "interval": intervals[m],
                "kl": float(kl[m].mean()),
            }
            for m in range(len(weightings))
        ],
    }


def _interval(values: pd.Series) -> list[float] | None:
    from scipy import stats

    if len(values) < 2:
        return None
    error = float(stats.sem(values))
    if error == 0:
        return [float(values.iloc[0])] * 2
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=error)
    return [float(low), float(high)]


def parse_points(given: list[str], objectives: tuple[str, ...], config: Config) -> np.ndarray:
    """Return the weightings [N, K] that a user typed, or the grid of params.yaml when there are none."""
    if given:
        return np.stack([weightings.parse(text, objectives) for text in given])
    settings = config.evaluation
    return weightings.grid(len(objectives), settings.weightings, off_grid=settings.off_grid, seed=config.seed)
