"""What the probe says of families: equal to transformers, or refused by name before anything is trained."""

import re

import pytest
import torch
from locations import REPOSITORY

from bench.families import build, families, outcome
from clp_lightning.errors import ClpError
from clp_lightning.policy import head, rollout
from clp_lightning.policy.probe import probe

TABLE = re.findall(
    r"^\| `(.+?)` \| (equal|refused|not built) \| (.*) \|$", (REPOSITORY / "docs" / "models.md").read_text(), re.M
)


@pytest.mark.parametrize("family", ["llama", "granite", "cohere2", "hyperclovax", "gemma2", "mt5"])
def test_a_family_that_treats_its_logits_is_computed_as_transformers_does(family):
    assert outcome(family) == ("equal", "")


@pytest.mark.parametrize("family", ["granite", "cohere2", "gemma2"])
def test_the_probe_notices_when_that_is_left_out(family, monkeypatch):
    monkeypatch.setattr(rollout, "logits_of", lambda model, hidden: model.get_output_embeddings()(hidden).float())
    found, why = outcome(family)
    assert found == "refused" and re.match(r"log-probabilities would be wrong here, by [\d.]+ nats", why)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("bart", "log-probabilities of the family bart would be wrong here, by"), ("lfm2", "models of the family lfm2 cannot"),
     ("opt", "models of the family opt cannot be used here"), ("qwen3_next", "models of the family qwen3_next cannot")],
)  # fmt: skip
def test_a_family_that_would_be_wrong_or_break_later_is_one_line(family, reason):
    with pytest.raises(ClpError) as raised:
        probe(build(family), "base.model x")
    assert str(raised.value).startswith(f"base.model x: {reason}") and "\n" not in str(raised.value)


def test_a_probed_model_is_as_it_was():
    model = build("llama")
    model.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    probe(model, "x")
    assert [type(module) for module in model.modules()] == modules and not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_logits_by_hand():
    class Head:
        final_logits_bias = torch.tensor([[1.0, 0.0]])

        class config:
            model_type, logits_scaling, final_logit_softcapping = "granite", 4.0, 2.0

        def get_output_embeddings(self):
            return lambda hidden: hidden

    # 8 / 4 + 1 = 3, capped 2 tanh(3 / 2) = 1.8103; -4 / 4 + 0 = -1, 2 tanh(-1 / 2) = -0.9242
    found = head.logits_of(Head(), torch.tensor([[8.0, -4.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.8103, -0.9242]]), atol=1e-4, rtol=0)


def test_the_table_of_the_docs_names_at_least_forty_families_and_all_that_there_are():
    assert [family for family, _, _ in TABLE] == families()
    assert sum(found != "not built" for _, found, _ in TABLE) >= 40


@pytest.mark.slow
@pytest.mark.parametrize(("family", "found", "why"), TABLE)
def test_the_table_of_the_docs_holds(family, found, why):
    assert outcome(family)[0] == found, why
