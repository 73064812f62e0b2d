"""Policy x weightings x prompts -> one result per row: response, rewards, monitors."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from clp_lightning.files import atomic
from clp_lightning.policy.loading import computing
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.progress import track
from clp_lightning.rewards.reward_set import Monitors, RewardSet


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a policy is sampled on: prompts with `id`, `document`, `summary`; weightings [N, K], or None if it takes none.

    `best_of` answers are drawn for each that is kept, the one with the largest w.R. `alpha` (0..1) is for a policy that takes
    KL strengths. Finished weightings are kept in the folder `parts`, so that an interrupted sweep continues, and so that
    several processes can each sample some of them. The random numbers of a (prompt, weighting) follow from `seed` and are the
    same for every method, which makes comparisons between them paired.
    """

    prompts: pd.DataFrame
    weightings: np.ndarray | None
    rewards: RewardSet
    samples: int
    batch_size: int
    seed: int
    parts: Path
    best_of: int = 1
    alpha: float | None = None

    @property
    def points(self) -> Sequence[np.ndarray | None]:
        """The weightings in order; a single None for a policy that takes none."""
        return [None] if self.weightings is None else list(self.weightings)

    def part(self, index: int) -> Path:
        """Return the file of one weighting's samples."""
        return self.parts / f"{index:04d}.parquet"


def sample(policy: SteerablePolicy, sweep: Sweep, indices: Sequence[int] | None = None) -> None:
    """Sample the points `indices`, all by default, of which there is no file yet."""
    todo = [i for i in (range(len(sweep.points)) if indices is None else indices) if not sweep.part(i).exists()]
    drawn = None
    for index in track(todo, description="sample"):
        weighting = sweep.points[index]
        if drawn is None or policy.experts is not None:  # the reference policy's answers serve every weighting
            drawn = _sample(policy, weighting, sweep)
        frame = drawn if weighting is None or sweep.best_of == 1 else _best(drawn, weighting, sweep)
        weights = {
            f"w:{name}": np.nan if weighting is None else weighting[k] for k, name in enumerate(policy.objectives)
        }
        with atomic(sweep.part(index)) as beside:
            frame.assign(weighting_id=index, computed_on=computing(policy.model), **weights).to_parquet(
                beside, index=False
            )


def evaluate(
    policy: SteerablePolicy, sweep: Sweep, *, method: str, monitors: Monitors, normalization: dict
) -> pd.DataFrame:
    """Sample every prompt at every weighting and score the responses; one row per (weighting, prompt, sample).

    Columns as in docs/design.md.
    """
    sample(policy, sweep)
    rows = pd.concat([pd.read_parquet(sweep.part(index)) for index in range(len(sweep.points))], ignore_index=True)
    documents = dict(zip(sweep.prompts["id"], sweep.prompts["document"], strict=True))
    # conversations are such again; without the dtype pandas makes plain texts of them
    rows["document"] = pd.Series([documents[prompt] for prompt in rows["prompt_id"]], rows.index, dtype=object)
    rows.insert(0, "method", method)
    if policy.experts is None:  # of the best of n answers, the bound log n - (n - 1) / n (arXiv 2401.01879)
        rows["monitor:kl"] = np.log(sweep.best_of) - (sweep.best_of - 1) / sweep.best_of
    else:
        rows["monitor:kl"] = _kl(policy, rows, sweep.batch_size)
    return _score(rows.drop(columns=["token_ids", "log_prob"]), sweep.rewards, monitors, normalization)


@torch.no_grad()
def _sample(policy: SteerablePolicy, weighting: np.ndarray | None, sweep: Sweep) -> pd.DataFrame:
    generator = torch.Generator().manual_seed(sweep.seed)
    samples, parts = sweep.samples * sweep.best_of, []
    for start in range(0, len(sweep.prompts), sweep.batch_size):
        batch = sweep.prompts.iloc[start : start + sweep.batch_size]
        rows = None if weighting is None else np.tile(weighting, (len(batch), 1))
        coefficients = policy.coefficients(rows, len(batch), sweep.alpha)
        # a prompted policy reads its weighting in the prompt
        tokens = policy.tokenize(batch["document"].tolist(), coefficients)
        responses = policy.rollout(tokens, coefficients, samples=samples, generator=generator)
        repeated = batch.loc[batch.index.repeat(samples)].reset_index(drop=True)
        parts.append(
            pd.DataFrame(
                {
                    "prompt_id": repeated["id"].to_numpy(),
                    "group": repeated["group" if "group" in repeated else "id"].to_numpy(),
                    "document": repeated["document"].astype(object),  # as it is: it may be a conversation
                    "reference_summary": repeated["summary"].to_numpy(),
                    "response": policy.decode(responses.ids),
                    "token_ids": [ids[mask].tolist() for ids, mask in zip(responses.ids, responses.mask, strict=True)],
                    "log_prob": responses.log_probs.sum(-1).double().cpu().numpy(),
                    "monitor:length": responses.mask.sum(-1).double().cpu().numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _best(drawn: pd.DataFrame, weighting: np.ndarray, sweep: Sweep) -> pd.DataFrame:
    """Keep of every `best_of` answers in a row the one with the largest w.R; of equal ones the first."""
    scores = sweep.rewards(drawn["document"].tolist(), drawn["response"].tolist()) @ weighting
    best = scores.reshape(-1, sweep.best_of).argmax(1)
    return drawn.iloc[np.arange(len(best)) * sweep.best_of + best].reset_index(drop=True)


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
    known = frame["reference_summary"].notna()
    for name, values in monitors(documents, frame["reference_summary"].fillna("").tolist(), responses).items():
        frame[f"monitor:{name}"] = values
    frame.loc[~known, "monitor:rouge_l"] = np.nan  # there is nothing to compare with
    return frame
