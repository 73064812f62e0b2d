"""Policy x weightings x prompts -> one result per row: response, rewards, monitors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track

from clp_lightning import weightings as simplex
from clp_lightning.files import atomic
from clp_lightning.losses import sequence_kl
from clp_lightning.policy import SteerablePolicy
from clp_lightning.rewards import Monitors, RewardSet


def evaluate(
    policy: SteerablePolicy,
    *,
    method: str,
    weightings: np.ndarray | None,
    prompts: pd.DataFrame,
    rewards: RewardSet,
    monitors: Monitors,
    normalization: dict,
    samples: int,
    batch_size: int,
    seed: int,
    parts: Path,
) -> pd.DataFrame:
    """Sample every prompt at every weighting and score the responses; one row per (weighting, prompt, sample).

    `weightings` [N, K], or None for a policy that takes none; `prompts` has `id`, `document`, `summary`. Columns as in
    docs/design.md. Finished weightings are kept in `parts`, so that an interrupted sweep continues. The random numbers
    of a (prompt, weighting) are the same for every method, which makes comparisons between them paired.
    """
    points: Sequence[np.ndarray | None] = [None] if weightings is None else list(weightings)
    frames = []
    for index, weighting in enumerate(track(points, description=f"evaluate {method}")):
        part = parts / f"{index:04d}.parquet"
        if not part.exists():
            frame = _evaluate_point(policy, weighting, prompts, samples=samples, batch_size=batch_size, seed=seed)
            frame = _score(frame, rewards, monitors, normalization)
            frame.insert(0, "method", method)
            frame.insert(1, "weighting_id", index)
            with atomic(part) as beside:
                frame.to_parquet(beside, index=False)
        frames.append(pd.read_parquet(part))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def _evaluate_point(
    policy: SteerablePolicy, weighting: np.ndarray | None, prompts: pd.DataFrame, *, samples: int, batch_size: int, seed: int
) -> pd.DataFrame:
    generator = torch.Generator(device=policy.model.device).manual_seed(seed)
    rows = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts.iloc[start : start + batch_size]
        tokens = policy.tokenize(batch["document"].tolist())
        coefficients = None if weighting is None else policy.coefficients(np.tile(weighting, (len(batch), 1)), len(batch))
        responses = policy.rollout(tokens, coefficients, samples=samples, generator=generator)
        ids, mask = responses.ids, responses.mask
        if weighting is None:
            kl = torch.zeros(len(ids))
        else:
            log_probs = policy.score(tokens, ids, mask, coefficients, samples=samples)
            kl = sequence_kl(log_probs, policy.score(tokens, ids, mask, None, samples=samples), mask).cpu()
        repeated = batch.loc[batch.index.repeat(samples)]
        rows.append(
            pd.DataFrame(
                {
                    "prompt_id": repeated["id"].to_numpy(),
                    "document": repeated["document"].to_numpy(),
                    "reference_summary": repeated["summary"].to_numpy(),
                    "response": policy.decode(ids),
                    "monitor:kl": kl.double().numpy(),
                    "monitor:length": mask.sum(-1).cpu().double().numpy(),
                }
            )
        )
    frame = pd.concat(rows, ignore_index=True)
    for k, name in enumerate(policy.objectives):
        frame[f"w:{name}"] = np.nan if weighting is None else weighting[k]
    return frame


def _score(frame: pd.DataFrame, rewards: RewardSet, monitors: Monitors, normalization: dict) -> pd.DataFrame:
    documents, responses = frame["document"].tolist(), frame["response"].tolist()
    raw = rewards.raw(documents, responses)
    for k, name in enumerate(rewards.objectives):
        scale = normalization["objectives"][name]
        frame[f"raw:{name}"] = raw[:, k]
        frame[f"reward:{name}"] = (raw[:, k] - scale["mean"]) / scale["std"]
    for name, values in monitors(documents, frame["reference_summary"].tolist(), responses).items():
        frame[f"monitor:{name}"] = values
    return frame


def sweep_weightings(objectives: int, points_per_edge: int) -> np.ndarray:
    """Return the evaluation grid, float64 [N, K]."""
    return simplex.lattice(objectives, points_per_edge)
