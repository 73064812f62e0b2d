"""Policy x weightings x prompts -> one result per row: response, rewards, monitors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clp_lightning.files import atomic
from clp_lightning.policy import SteerablePolicy
from clp_lightning.progress import track
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
    alpha: float | None = None,
) -> pd.DataFrame:
    """Sample every prompt at every weighting and score the responses; one row per (weighting, prompt, sample).

    `weightings` [N, K], or None for a policy that takes none; `alpha` (0..1) for one that takes KL strengths; `prompts` has
    `id`, `document`, `summary`. Columns as in docs/design.md. Finished weightings are kept in `parts`, so that an interrupted
    sweep continues. The random numbers of a (prompt, weighting) are the same for every method, which makes comparisons
    between them paired.
    """
    points: Sequence[np.ndarray | None] = [None] if weightings is None else list(weightings)
    frames = []
    for index, weighting in enumerate(track(points, description=f"sample {method}")):
        part = parts / f"{index:04d}.parquet"
        if not part.exists():
            frame = _sample(policy, weighting, prompts, samples=samples, batch_size=batch_size, seed=seed, alpha=alpha)
            frame.insert(0, "method", method)
            frame.insert(1, "weighting_id", index)
            with atomic(part) as beside:
                frame.to_parquet(beside, index=False)
        frames.append(pd.read_parquet(part))
    rows = pd.concat(frames, ignore_index=True)
    rows["monitor:kl"] = 0.0 if weightings is None else _kl(policy, rows, batch_size)
    return _score(rows.drop(columns=["token_ids", "log_prob"]), rewards, monitors, normalization)


@torch.no_grad()
def _sample(
    policy: SteerablePolicy,
    weighting: np.ndarray | None,
    prompts: pd.DataFrame,
    *,
    samples: int,
    batch_size: int,
    seed: int,
    alpha: float | None,
) -> pd.DataFrame:
    generator = torch.Generator(device=policy.model.device).manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts.iloc[start : start + batch_size]
        rows = None if weighting is None else np.tile(weighting, (len(batch), 1))
        coefficients = policy.coefficients(rows, len(batch), alpha)
        tokens = policy.tokenize(
            batch["document"].tolist(), coefficients
        )  # a prompted policy reads its weighting there
        responses = policy.rollout(tokens, coefficients, samples=samples, generator=generator)
        repeated = batch.loc[batch.index.repeat(samples)]
        parts.append(
            pd.DataFrame(
                {
                    "prompt_id": repeated["id"].to_numpy(),
                    "document": repeated["document"].to_numpy(),
                    "reference_summary": repeated["summary"].to_numpy(),
                    "response": policy.decode(responses.ids),
                    "token_ids": [ids[mask].tolist() for ids, mask in zip(responses.ids, responses.mask, strict=True)],
                    "log_prob": responses.log_probs.sum(-1).double().cpu().numpy(),
                    "monitor:length": responses.mask.sum(-1).double().cpu().numpy(),
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    for k, name in enumerate(policy.objectives):
        frame[f"w:{name}"] = np.nan if weighting is None else weighting[k]
    return frame


@torch.no_grad()
def _kl(policy: SteerablePolicy, rows: pd.DataFrame, batch_size: int) -> pd.Series:
    """Estimate the KL to the reference per response: one reference prompt pass serves all weightings of a prompt."""
    reference = pd.Series(np.nan, index=rows.index)
    groups = list(rows.groupby("prompt_id", sort=False).groups.values())
    per_prompt = len(groups[0])
    step = max(1, batch_size // 8)  # a group holds a row per weighting, so fewer groups fit a batch
    for start in track(range(0, len(groups), step), description="KL to the reference"):
        index = np.concatenate(groups[start : start + step])
        chosen = rows.loc[index]
        width = max(map(len, chosen["token_ids"]))
        pad = policy.tokenizer.pad_token_id
        padded = [[*ids, *[pad] * (width - len(ids))] for ids in chosen["token_ids"]]
        ids = torch.tensor(padded, device=policy.model.device)
        lengths = torch.tensor([len(ids) for ids in chosen["token_ids"]], device=ids.device)
        mask = torch.arange(width, device=ids.device) < lengths[:, None]
        tokens = policy.tokenize(chosen["document"].tolist()[::per_prompt])
        scores = policy.score(tokens, ids, mask, None, samples=per_prompt)
        reference[index] = scores.sum(-1).double().cpu().numpy()
    return rows["log_prob"] - reference


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
