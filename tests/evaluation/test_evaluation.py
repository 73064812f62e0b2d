"""The sweep samples what the policy itself generates, for policies that read their weighting in the prompt too."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import DOCUMENTS, make_policy, write_model

from clp_lightning.data import Conversation, from_transcript, to_messages
from clp_lightning.evaluation import sweep as evaluation
from clp_lightning.rewards.reward_set import RewardSet


@pytest.mark.parametrize(("prompted", "alpha"), [(False, None), (True, None), (False, 0.3)])
def test_the_sweep_samples_what_the_policy_generates(tmp_path, prompted, alpha):
    policy = make_policy(write_model("llama", tmp_path / "reference"), prompted=prompted, takes_alpha=alpha is not None)
    prompts = pd.DataFrame({"id": list("xyz"), "document": DOCUMENTS, "summary": ""})
    weighting = np.array([0.25, 0.75])
    sweep = evaluation.Sweep(prompts, weighting[None], None, 1, 2, 3, tmp_path / "parts", alpha=alpha)
    evaluation.sample(policy, sweep)
    swept = pd.read_parquet(sweep.part(0))
    generated = policy.generate(DOCUMENTS, {"a": 0.25, "b": 0.75}, alphas=alpha, seed=3, batch_size=2)
    assert swept["response"].tolist() == generated
    assert swept[["w:a", "w:b"]].to_numpy().tolist() == [[0.25, 0.75]] * 3
    assert swept["weighting_id"].tolist() == [0] * 3


def test_points_that_have_their_file_are_not_sampled_again(tmp_path):
    policy = make_policy(write_model("llama", tmp_path / "reference"))
    prompts = pd.DataFrame({"id": list("xyz"), "document": DOCUMENTS, "summary": ""})
    sweep = evaluation.Sweep(prompts, np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]), None, 1, 2, 3, tmp_path / "parts")
    evaluation.sample(policy, sweep, [2, 0])
    assert sorted(path.name for path in sweep.parts.iterdir()) == ["0000.parquet", "0002.parquet"]
    before = sweep.part(2).stat().st_mtime_ns
    evaluation.sample(policy, sweep)
    assert sweep.part(1).exists() and sweep.part(2).stat().st_mtime_ns == before


def test_conversations_stay_conversations_through_the_sweep(tmp_path):
    """Rewards get them with their messages, and KL is measured on the prompt that was answered: a long one loses its start."""
    policy = make_policy(write_model("llama", tmp_path / "reference"))
    talks = [
        from_transcript(f"Human: {DOCUMENTS[0]} {DOCUMENTS[1]} {n}\n\nAssistant: yes\n\nHuman: why {n}") for n in (1, 2)
    ]
    assert all(policy.template.left_out(talk) for talk in talks)  # so that a plain text would be another prompt
    prompts = pd.DataFrame({"id": ["x", "y"], "document": pd.Series(talks, dtype=object), "summary": ""})
    seen = []

    def counted(documents, responses):
        seen.extend(documents)
        return np.array([float(len(to_messages(document))) for document in documents])

    scale = {"objectives": {name: {"mean": 0.0, "std": 1.0} for name in ("a", "b")}}
    rewards = RewardSet({"a": counted, "b": counted}, scale)
    grid = np.array([[1.0, 0.0], [0.25, 0.75]])
    sweep = evaluation.Sweep(prompts, grid, rewards, 1, 2, 3, tmp_path / "parts")
    rows = evaluation.evaluate(policy, sweep, method="clp", monitors=lambda *_: {}, normalization=scale)
    assert {type(document) for document in seen} == {Conversation} and set(rows["raw:a"]) == {3.0}
    parts = pd.concat([pd.read_parquet(sweep.part(index)) for index in range(2)], ignore_index=True)
    for row in parts.itertuples():
        prompt = policy.tokenize([talks["xy".index(row.prompt_id)]])
        ids = torch.tensor([row.token_ids.tolist()])
        with torch.no_grad():
            reference = policy.score(prompt, ids, torch.ones_like(ids, dtype=torch.bool), None, samples=1).sum().item()
        kl = rows[(rows.prompt_id == row.prompt_id) & (rows.weighting_id == row.weighting_id)]["monitor:kl"].item()
        assert kl == pytest.approx(row.log_prob - reference, abs=1e-5)
