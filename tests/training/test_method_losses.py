"""What a step minimizes: preferences, the settings of REINFORCE, and a loss of a user's own, on a tiny Llama."""

import sys

import numpy as np
import pytest
import test_training
import torch
from locations import DEFAULT
from test_training import rewards, train
from tiny_models import write_model

from clp_lightning.config.parameters import Config
from clp_lightning.config.training import CustomLoss, MiEpo, OnlineDpo
from clp_lightning.errors import ClpError
from clp_lightning.pipeline.train import train as stage
from clp_lightning.training.losses import other_weighting_loss, pair_loss, sequence_kl
from clp_lightning.training.method_losses import build_loss

DPO = OnlineDpo(kind="online_dpo")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("losses") / "reference")


def steps(base, folder, loss=None, **changes):
    """The tensors that a training of two steps ends at."""
    return train(base, folder, loss=loss, **changes).policy.experts.tensors()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def short(documents, responses):
    """Both rewards want short texts, so every weighting does."""
    return -np.array([[len(set(text)), len(text)] for text in responses]) / 4.0


def test_preferences_buy_reward(base, tmp_path):
    options = {"steps": 16, "prompts_per_step": 8, "samples_per_prompt": 8, "learning_rate": 3e-2}
    curve = train(base, tmp_path, loss=DPO, reward_set=short, **options).curve
    first, last = (np.mean([row["scalarized_reward"] for row in rows]) for rows in (curve[:4], curve[-4:]))
    assert last > first + 0.15


def test_responses_that_are_all_worth_the_same_teach_nothing(base, tmp_path):
    curve = train(base, tmp_path, loss=DPO, reward_set=lambda d, r: np.ones((len(r), 2))).curve
    assert [row["loss"] for row in curve] == [0, 0] and [row["gradient_norm"] for row in curve] == [0, 0]


def test_mi_epo_compares_with_the_same_responses_at_other_weightings(base, tmp_path, monkeypatch):
    loss, seen = build_loss(MiEpo(kind="mi_epo", beta=0.5, beta_w=0.2), tmp_path), {}
    loss.register_forward_hook(
        lambda _, inputs, output: seen.update(batch=inputs[0], elsewhere=inputs[0].log_probs_elsewhere(), loss=output)
    )
    monkeypatch.setattr(test_training, "build_loss", lambda *_: loss)
    train(base, tmp_path, loss=DPO, steps=1)
    batch, elsewhere = seen["batch"], seen["elsewhere"]
    assert (elsewhere - batch.log_probs).abs().max() > 1e-3 and elsewhere.requires_grad
    assert batch.samples == 3 and torch.equal(batch.scalarized, (batch.weightings * batch.rewards).sum(1))
    here, there = (sequence_kl(each, batch.ref_log_probs, batch.mask) for each in (batch.log_probs, elsewhere))
    expected = pair_loss(here, batch.scalarized, 3, 0.5) + other_weighting_loss(here, there, 0.2)
    torch.testing.assert_close(seen["loss"], expected)


def test_advantages_of_one_kind_for_all_objectives_do_not_depend_on_a_rewards_scale(base, tmp_path):
    def scaled(documents, responses):
        return rewards(documents, responses) * [100.0, 1.0]

    for advantages in ("gdpo", "rvpo"):
        options = {"advantages": advantages, "steps": 1}
        plain = train(base, tmp_path / f"{advantages}-plain", **options).curve[0]
        other = train(base, tmp_path / f"{advantages}-scaled", reward_set=scaled, **options).curve[0]
        for key in ("loss", "gradient_norm"):  # the same but for what is added to deviations
            assert other[key] == pytest.approx(plain[key], rel=1e-2)
    assert train(base, tmp_path / "batch", steps=1, reward_set=scaled).curve[0]["loss"] != pytest.approx(
        plain["loss"], rel=1e-2
    )


def test_a_risk_of_all_is_none(base, tmp_path):
    plain = steps(base, tmp_path / "plain")
    everything = steps(base, tmp_path / "all", risk={"kind": "cvar", "tau": 1.0})
    worst = steps(base, tmp_path / "worst", risk={"kind": "cvar", "tau": 0.34})
    for name in plain:
        torch.testing.assert_close(plain[name], everything[name])
    assert not same(plain, worst)


OWN = """
import torch
from clp_lightning.training.losses import leave_one_out_advantages, policy_gradient_loss

def reinforce(batch):
    returns = (1 - batch.alphas) * batch.scalarized - batch.alphas * batch.kl
    advantages = leave_one_out_advantages(returns, batch.samples)
    scale = advantages.square().mean().sqrt()
    return policy_gradient_loss(batch.log_probs, (advantages / scale).float(), batch.mask)

def nan(batch): return batch.log_probs.sum() * float("nan")
def rows(batch): return batch.log_probs.sum(-1)
def number(batch): return 1.0
def constant(batch): return torch.zeros(())
def broken(batch): return batch.logits
"""


def own(folder, function):
    (folder / "my_losses.py").write_text(OWN)
    sys.modules.pop("my_losses", None)
    return CustomLoss(kind="custom", function=f"my_losses:{function}")


def test_a_loss_of_ones_own_is_a_function_and_a_row(base, tmp_path):
    assert same(steps(base, tmp_path, own(tmp_path, "reinforce")), steps(base, tmp_path / "plain"))


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("nan", "loss my_losses:nan returned nan; return a finite number"),
        ("rows", "loss my_losses:rows returned shape (6,); return one number, a tensor of shape ()"),
        ("number", "loss my_losses:number returned float; return one number, a tensor of shape ()"),
        ("constant", "loss my_losses:constant returned a number without a gradient; compute it from batch.log_probs"),
        ("broken", "loss my_losses:broken failed: AttributeError: 'Batch' object has no attribute 'logits'; mend the function, "
         "or name another"),
    ],
)  # fmt: skip
def test_a_loss_that_breaks_is_named(base, tmp_path, function, problem):
    with pytest.raises(ClpError) as raised:
        train(base, tmp_path, loss=own(tmp_path, function))
    assert str(raised.value) == problem


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("my_lossses:mean", "loss my_lossses:mean: no module my_lossses in "),
        ("my_losses:meen", "my_losses.py has no function meen; correct function"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_anything_is_loaded(tmp_path, monkeypatch, function, problem):
    own(tmp_path, "nan")
    row = DEFAULT["methods"]["rewarded-soups"] | {"loss": {"kind": "custom", "function": function}}
    config = Config.model_validate(DEFAULT | {"methods": DEFAULT["methods"] | {"rewarded-soups": row}})
    monkeypatch.chdir(tmp_path)  # where there is no model at all
    with pytest.raises(ClpError) as raised:
        stage(config, "rewarded-soups")
    assert problem in str(raised.value) and "\n" not in str(raised.value)
