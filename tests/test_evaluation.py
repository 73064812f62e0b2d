"""The sweep samples what the policy itself generates, for policies that read their weighting in the prompt too."""

import numpy as np
import pandas as pd
import pytest
from tiny_models import DOCUMENTS, make_policy, write_model

from clp_lightning import evaluation


@pytest.mark.parametrize(("prompted", "alpha"), [(False, None), (True, None), (False, 0.3)])
def test_the_sweep_samples_what_the_policy_generates(tmp_path, prompted, alpha):
    policy = make_policy(write_model("llama", tmp_path / "reference"), prompted=prompted, takes_alpha=alpha is not None)
    prompts = pd.DataFrame({"id": list("xyz"), "document": DOCUMENTS, "summary": ""})
    weighting = np.array([0.25, 0.75])
    swept = evaluation._sample(policy, weighting, prompts, samples=1, batch_size=2, seed=3, alpha=alpha)
    generated = policy.generate(DOCUMENTS, {"a": 0.25, "b": 0.75}, alphas=alpha, seed=3, batch_size=2)
    assert swept["response"].tolist() == generated
    assert swept[["w:a", "w:b"]].to_numpy().tolist() == [[0.25, 0.75]] * 3
