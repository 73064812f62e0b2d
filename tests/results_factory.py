"""Writes `results/METHOD/{results.parquet,summary.json}` as the pipeline does, with known true means.

The truth: at weighting (w, 1 - w) a method's mean normalized rewards are `reach * (sqrt(w), sqrt(1 - w))`, a quarter
circle of radius `reach`; the reference policy is at the origin, as normalization makes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from locations import REPOSITORY

from clp_lightning.config.parameters import Config, load_config
from clp_lightning.files import atomic, write_json
from clp_lightning.store.queries import publish, record_decision

REACH = {"clp-full": 1.0, "rewarded-soups": 0.6}
NAMES = ("CreateBucket", "DeleteTable", "ListFunctions", "PutObject", "StartInstance", "TagQueue")


def config(**changes: object) -> Config:
    """The default parameters with a small evaluation and brevity for readability; `changes` replace whole sections."""
    values = load_config(REPOSITORY / "params.yaml").model_dump()
    values["rewards"] = {
        "informativeness": values["rewards"]["informativeness"], "brevity": {"kind": "brevity", "min_words": 6}
    }  # fmt: skip
    values["training"]["alpha_start"] = None  # tests choose other alphas
    values["evaluation"] |= {"weightings": 5, "samples_per_prompt": 1, "prompts": 24, "bootstrap_draws": 200}
    return Config.model_validate(values | changes)


def lattice(objectives: int, points: int) -> np.ndarray:
    """The pipeline's grid: all weightings whose entries are multiples of 1 / (points - 1)."""
    axes = np.meshgrid(*[np.arange(points)] * objectives, indexing="ij")
    grid = np.stack([axis.ravel() for axis in axes], axis=-1)
    return grid[grid.sum(-1) == points - 1] / (points - 1)


def write_results(
    folder: Path, config: Config, *, reach: dict[str, float] | None = None, noise: float = 0.5, seed: int = 0
):
    """Write every method of `config` and the reference policy below `folder`, which is returned."""
    for index, method in enumerate(config.compared):
        radius = 0.0 if method == "reference" else (reach or REACH).get(method, 0.8)
        write_method(folder, config, method, radius, noise=noise, seed=seed + index)
    return folder


def write_arena(folder: Path, trainings: Sequence[Mapping[str, object]]) -> Path:
    """Publish a run of four methods for each change of `training`, with a stage, and a decision about the last.

    clp-attn reaches 1.2, clp-full 1.0, rewarded-soups 0.6. Returns the store.
    """
    base, store = config(), folder / "frontier.duckdb"
    names = ("clp-full", "clp-attn", "rewarded-soups", "clp-new_1+a")
    methods = {name: base.methods["clp-full"].model_dump() for name in names}
    stage = {"stage": "sft", "started_at": pd.Timestamp("2026-01-01"), "seconds": 61.0, "peak_memory_mb": 900}
    for number, changes in enumerate(trainings):
        parameters = config(methods=methods, training=base.training.model_dump() | changes)
        write_results(folder / "results", parameters, reach=REACH | {"clp-attn": 1.2}, seed=10 * number)
        run = publish(folder / "results", store, parameters, pd.DataFrame([stage]))
    decision = {
        "run_id": run, "decided_at": pd.Timestamp("2026-01-02"), "method": "clp-full", "challenger": "abc",
        "champion": None, "promoted": True, "reasons": [], "statistic": "mean_j", "value": 0.6, "other_value": 0.0,
        "rule": "{}", "kl": 1.0, "prompts": 24,
    }  # fmt: skip
    record_decision(store, decision)
    return store


def write_method(folder: Path, config: Config, method: str, reach: float, *, noise: float = 0.5, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    objectives, prompts = config.objectives, config.evaluation.prompts
    grid = lattice(len(objectives), config.evaluation.weightings)
    if config.evaluation.off_grid:
        beside = np.random.default_rng(config.seed).dirichlet(np.ones(len(objectives)), config.evaluation.off_grid)
        grid = np.concatenate([grid, beside])
    rows = []
    for weighting_id, w in enumerate([None] if method == "reference" else grid):
        centre = np.zeros(len(objectives)) if w is None else reach * np.sqrt(w)
        # noise that sums to zero over the prompts: the means are the truth exactly
        deviations = random.normal(size=(prompts, len(objectives))) * noise
        rewards = centre + deviations - deviations.mean(0)
        for p in range(prompts):
            name = f"{NAMES[p % len(NAMES)]}{p}"
            words = ["Creates", "the", "resource", "of", name, "in", "the", "Region", "that", "you", "specify"]
            length = len(words) if w is None else 3 + round((len(words) - 3) * float(w[0]))
            row = {
                "method": method,
                "weighting_id": weighting_id,
                "prompt_id": f"service-{p:03d}",
                "group": f"group-{p // 2:03d}",
                "document": f"{name} (service {p})\nThe operation for {name} <b>creates</b> a *new* resource here.",
                "reference_summary": f"Creates a {name} resource.",
                "response": " ".join(words[:length]) + (f" [{method}]" if method != "reference" else ""),
            }
            for k, objective in enumerate(objectives):
                row[f"w:{objective}"] = np.nan if w is None else w[k]
                row[f"reward:{objective}"] = rewards[p, k]
                row[f"raw:{objective}"] = 2 * rewards[p, k] + 1
            kl = 0.0 if w is None else 1.5 * reach
            monitors = {"rouge_l": 0.4, "coverage": 0.5, "kl": kl, "length": float(length), "distinct_2": 0.9}
            rows.append(row | {f"monitor:{name}": value for name, value in monitors.items()})
    with atomic(folder / method / "results.parquet") as beside:
        beside.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_parquet(beside, index=False)
    trained = method != "reference"
    cost = {
        "rollouts": 1600 if trained else 0,
        "generated_tokens": 24_000 if trained else 0,
        "train_seconds": 240.5 if trained else 0.0,
        "evaluate_seconds": 70.0,
        "stored_parameters": 2_442_240 if trained else 134_515_008,
        "models": 1,
        "forward_passes_per_token": 1,
    } | ({"computed_on": "float32, cpu, 2 threads"} if trained else {})
    summary = {
        "method": method,
        "objectives": list(objectives),
        "normalization": {name: {"mean": 1.0, "std": 2.0} for name in objectives},
        "seed": config.seed,
        "training_seed": config.training.seed,
        "computed_on": "float32, cpu, 2 threads",
        "weights_hash": f"hash of {method}",
        "corpus_hash": "c0ffee",
        "cost": cost,
    }
    write_json(folder / method / "summary.json", summary)
    if trained:
        (folder / method / "training_curve.csv").write_text("step,loss,kl\n0,1.5,0.0\n1,1.0,0.25\n")
