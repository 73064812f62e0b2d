"""The sweep samples what the policy itself generates, for policies that read their weighting in the prompt too."""

import numpy as np
import pandas as pd
import pytest
from tiny_models import DOCUMENTS, make_policy, write_model

from clp_lightning.evaluation import sweep as evaluation


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
