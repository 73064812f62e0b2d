"""The CLP trainer with every option, on a tiny Llama and rewards that count characters."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tiny_models import DOCUMENTS, make_policy, write_model

from clp_lightning import weightings
from clp_lightning.config.methods import Backbones, Dirichlet, Fixed, Mixture, SmoothedVertices, Vertices
from clp_lightning.config.training import MiEpo, OnlineDpo, Training
from clp_lightning.errors import ClpError
from clp_lightning.rewards.reward_set import RewardSet
from clp_lightning.training import baselines
from clp_lightning.training.clp import ClpModule, draw_weightings, reward_weights
from clp_lightning.training.method_losses import build_loss
from clp_lightning.training.trainer import fit

SETTINGS = {
    "seed": 0, "steps": 2, "accumulate": 1, "devices": 1, "prompts_per_step": 2, "samples_per_prompt": 3, "learning_rate": 1e-2,
    "rank": 3, "alpha": 0.1, "alpha_start": None, "alpha_high": None, "kl": "reward",
    "baseline": "leave_one_out", "advantages": "batch", "gradient_clip": 1.0, "checkpoint_every": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("training") / "reference")


def rewards(documents, responses):
    return np.array([[len(set(text)), -len(text)] for text in responses], dtype=np.float64) / 4


def train(
    base, folder, policy=None, *, every=100, callbacks=(), reward_set=None, q=None, relabel=False, loss=None, **changes
):
    settings = Training.model_validate(SETTINGS | changes)
    policy = policy or make_policy(base, takes_alpha=settings.alpha_high is not None)
    documents = [f"{text} {n}" for n in range(4) for text in DOCUMENTS]
    q = q or Dirichlet(kind="dirichlet", concentration=1.0)
    loss = None if loss is None else build_loss(loss, folder)
    module = ClpModule(policy, settings, q, documents, reward_set or rewards, seed=0, relabel=relabel, loss=loss)
    fit(
        module, checkpoints=folder, every=every, gradient_clip=settings.gradient_clip, devices=settings.devices,
        callbacks=callbacks,
    )  # fmt: skip
    return module


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": "regression"},
        {"baseline": "value"},
        {"baseline": "regression", "samples_per_prompt": 1},
        {"kl": "loss"},
        {"kl": "exact"},
        {"kl": "exact", "relabel": True, "samples_per_prompt": 4},
        {"advantages": "objective", "kl": "loss"},
        {"advantages": "none"},
        {"advantages": "gdpo"},
        {"advantages": "gdpo", "kl": "exact"},
        {"advantages": "rvpo", "rvpo_sharpness": 2.0},
        {"risk": {"kind": "cvar", "tau": 0.5}},
        {"risk": {"kind": "cvar", "tau": 0.5}, "relabel": True, "samples_per_prompt": 4},
        {"loss": OnlineDpo(kind="online_dpo")},
        {"loss": MiEpo(kind="mi_epo"), "accumulate": 2},
        {"alpha_high": 1.0},
        {"accumulate": 2},
        {"alpha_start": 1.0},
        {"relabel": True, "samples_per_prompt": 4},
        {"relabel": True, "samples_per_prompt": 8},
        {"relabel": True, "samples_per_prompt": 4, "alpha_high": 1.0, "kl": "loss"},
        {"relabel": True, "samples_per_prompt": 4, "advantages": "objective", "accumulate": 2},
    ],
    ids=lambda changes: ",".join(f"{key}={value}" for key, value in changes.items()),
)
def test_every_option_trains(base, tmp_path, changes):
    policy = make_policy(base, takes_alpha="alpha_high" in changes)
    before = {name: tensor.clone() for name, tensor in policy.experts.tensors().items()}
    module = train(base, tmp_path, policy, **changes)
    assert module.global_step == 2 and len(module.curve) == 2 * changes.get("accumulate", 1)
    after = policy.experts.tensors()
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert sum(not torch.equal(before[name], after[name]) for name in before) == len(before)


def test_more_steps_buy_more_reward(base, tmp_path, monkeypatch):
    # short texts and few different characters: both fall together, so every weighting wants short texts here
    monkeypatch.setattr(
        sys.modules[__name__], "rewards", lambda d, r: -np.array([[len(set(t)), len(t)] for t in r]) / 4.0
    )
    curve = train(
        base, tmp_path, steps=16, prompts_per_step=8, samples_per_prompt=8, alpha=0.0, learning_rate=3e-2
    ).curve
    first, last = (np.mean([row["scalarized_reward"] for row in rows]) for rows in (curve[:4], curve[-4:]))
    assert last > first + 0.3


class Killed(Exception):
    """Stands for a process that ends in the middle of a step's micro-batches."""


class KillAt(Callback):
    def __init__(self, micro_batch):
        self.micro_batch = micro_batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == self.micro_batch:
            raise Killed


@pytest.mark.parametrize("baseline", ["leave_one_out", "regression", "value"])
def test_resumed_training_is_bit_exact(base, tmp_path, baseline):
    # checkpoints after steps 2 and 4 (micro-batches 3 and 7), killed after micro-batch 8: the first half of step 5
    settings = {"steps": 6, "accumulate": 2, "baseline": baseline, "alpha_start": 0.8, "every": 2}
    whole = train(base, tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        train(base, tmp_path / "parts", callbacks=[KillAt(8)], **settings)
    resumed = train(base, tmp_path / "parts", **settings)
    for name, tensor in whole.policy.experts.tensors().items():
        assert torch.equal(resumed.policy.experts.tensors()[name], tensor), name
    timeless = [[{**row, "seconds": 0} for row in module.curve] for module in (whole, resumed)]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 12
    assert resumed.generated_tokens == whole.generated_tokens


@pytest.mark.parametrize(
    "value, problem",
    [
        (lambda n: np.full(n, np.nan), "reward good returned nan"),
        (lambda n: np.ones(n + 1), "reward good returned shape"),
        (lambda n: 1 / 0, "reward good failed: ZeroDivisionError"),
    ],
    ids=["nan", "shape", "raises"],
)
def test_a_reward_that_breaks_is_named_and_the_training_continues_once_it_is_mended(base, tmp_path, value, problem):
    scale = {"objectives": {name: {"mean": 0.0, "std": 4.0} for name in ("good", "b")}}
    calls = []

    def good(documents, responses):
        calls.append(len(responses))
        broken = value(len(responses)) if len(calls) == 4 else None
        return rewards(documents, responses)[:, 0] if broken is None else broken

    def objectives():
        return RewardSet({"good": good, "b": lambda d, r: rewards(d, r)[:, 1]}, scale)

    with pytest.raises(ClpError, match=problem):
        train(base, tmp_path / "parts", reward_set=objectives(), steps=6, every=2)
    mended = train(base, tmp_path / "parts", reward_set=objectives(), steps=6, every=2)
    whole = train(base, tmp_path / "whole", reward_set=objectives(), steps=6)
    assert len(calls) == 4 + 4 + 6  # the second run made steps 3 to 6 only
    for name, tensor in whole.policy.experts.tensors().items():
        assert torch.equal(mended.policy.experts.tensors()[name], tensor), name


def test_constant_rewards_leave_the_policy_where_it_is(base, tmp_path):
    policy = make_policy(base)
    before = {name: tensor.clone() for name, tensor in policy.experts.tensors().items()}
    constant = RewardSet({"a": lambda d, r: np.ones(len(r)), "b": lambda d, r: np.ones(len(r))},
                         {"objectives": {name: {"mean": 0.0, "std": 1.0} for name in "ab"}})  # fmt: skip
    train(base, tmp_path, policy, reward_set=constant, alpha=0.0)
    for name, tensor in policy.experts.tensors().items():
        torch.testing.assert_close(tensor, before[name])  # no advantage, no step; and above all no NaN


def test_alpha_falls_from_its_start_and_then_stays(base):
    settings = Training.model_validate(SETTINGS | {"steps": 10, "alpha_start": 0.9})
    module = ClpModule(make_policy(base), settings, Vertices(kind="vertices"), DOCUMENTS, rewards, seed=0)
    seen = []
    for step in range(10):
        type(module).global_step = property(lambda _, step=step: step)
        seen.append(module.alpha_now())
    del type(module).global_step
    # 0.9 (0.1 / 0.9)^(step / 7): a factor of 9^(-1/7) per step until step 7
    np.testing.assert_allclose(seen[:8], 0.9 * 9.0 ** -(np.arange(8) / 7))
    assert seen[8:] == pytest.approx([0.1, 0.1])


def test_distributions_of_weightings():
    rng = np.random.default_rng(0)
    for q in (Dirichlet(kind="dirichlet", concentration=0.4), Vertices(kind="vertices")):
        drawn = draw_weightings(q, rng, 50, ("a", "b", "c"))
        assert drawn.shape == (50, 3) and np.allclose(drawn.sum(1), 1) and (drawn >= 0).all()
    mixed = draw_weightings(Mixture(kind="mixture", concentration=1.0, corner_mass=0.25), rng, 4000, ("a", "b"))
    # the share at corners is binomial with sd sqrt(.25 * .75 / 4000) = 0.007
    assert (mixed == 1).any(1).mean() == pytest.approx(0.25, abs=0.03)
    for q in (
        Dirichlet(kind="dirichlet", concentration=0.4),
        Mixture(kind="mixture", concentration=1, corner_mass=0.5),
    ):
        even = draw_weightings(q.model_copy(update={"antithetic": True}), rng, 6, ("a", "b", "c"))
        np.testing.assert_allclose(even.mean(0), 1 / 3)  # each draw stands there in its three rotations
    fixed = draw_weightings(Fixed(kind="fixed", weighting={"b": 0.75, "a": 0.25}), rng, 2, ("a", "b"))
    assert fixed.tolist() == [[0.25, 0.75]] * 2


def test_smoothed_soups_and_backbones_draw_vertices_and_maximize_mixtures():
    q = SmoothedVertices(kind="smoothed_vertices", concentration=0.4)
    drawn = draw_weightings(q, np.random.default_rng(0), 6, ("a", "b", "c"))
    assert sorted(drawn.tolist()) == sorted(np.eye(3).tolist() * 2)  # one-hot: each trains its own expert only
    # (c + 1) / (K c + 1) = 1.4 / 2.2 at its own objective, c / (K c + 1) = 0.4 / 2.2 at the others
    np.testing.assert_allclose(reward_weights(q, np.eye(3))[1], [2 / 11, 7 / 11, 2 / 11])
    bones = Backbones(kind="backbones", beta=0.6)
    assert sorted(draw_weightings(bones, np.random.default_rng(0), 6, ("a", "b", "c")).tolist()) == sorted(
        drawn.tolist()
    )
    np.testing.assert_allclose(reward_weights(bones, np.eye(3))[1], [0.2, 0.6, 0.2])
    plain = Vertices(kind="vertices")
    assert reward_weights(plain, drawn) is drawn


@pytest.mark.parametrize(
    ("q", "share"),
    [
        (SmoothedVertices(kind="smoothed_vertices", concentration=0.4), 7 / 9),
        (Backbones(kind="backbones", beta=0.7), 0.7),
    ],
)
def test_an_expert_of_smoothed_soups_is_paid_by_its_mixture_and_alone_in_the_parameters(base, tmp_path, q, share):
    settings = Training.model_validate(SETTINGS | {"steps": 1, "prompts_per_step": 1})
    policy = make_policy(base)
    before = {name: tensor.clone() for name, tensor in policy.experts.tensors().items() if name.endswith(".b")}
    module = ClpModule(policy, settings, q, DOCUMENTS, rewards, seed=0)
    fit(module, checkpoints=tmp_path, every=100)
    row = module.curve[0]
    own = [
        abs(row["scalarized_reward"] - (first * row["reward_a"] + (1 - first) * row["reward_b"])) < 1e-9
        for first in (share, 1 - share)
    ]
    assert sorted(own) == [False, True]  # paid by the mixture of expert 0 or of expert 1
    after = policy.experts.tensors()
    moved = {name: (before[name] - after[name]).abs().amax(0) > 0 for name in before}  # [K r] columns
    by_expert = np.stack([each.reshape(2, -1).any(1).numpy() for each in moved.values()]).any(0)
    assert by_expert.tolist() == own


def test_relabeled_responses_teach_every_expert(base, tmp_path):
    # four responses to one prompt: all drawn at (1, 0), or two there and two at (0, 1), each with a weight at both
    moved = {}
    for relabel in (False, True):
        policy = make_policy(base)
        before = {name: tensor.clone() for name, tensor in policy.experts.tensors().items() if name.endswith(".b")}
        options = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 4, "relabel": relabel}
        row = train(base, tmp_path / str(relabel), policy, q=Vertices(kind="vertices"), **options).curve[0]
        after = policy.experts.tensors()
        change = np.stack(
            [(before[name] - after[name]).abs().amax(0).reshape(2, -1).amax(1).numpy() for name in before]
        )
        moved[relabel] = (change > 0).any(0)
    assert sorted(moved[False].tolist()) == [False, True] and moved[True].all()
    assert 1 < row["reuse"] < 2


def test_a_response_is_scored_at_the_weighting_that_it_was_drawn_at_too(base, tmp_path, monkeypatch):
    policy, seen = make_policy(base), {}
    monkeypatch.setattr(
        policy, "rollout", lambda *a, **o: seen.setdefault("drawn", type(policy).rollout(policy, *a, **o))
    )
    # the reference policy is scored first; the last is what is learned from
    monkeypatch.setattr(
        policy,
        "score_fully",
        lambda *a, **o: seen.update(scored=type(policy).score_fully(policy, *a, **o)) or seen["scored"],
    )
    train(base, tmp_path, policy, steps=1, prompts_per_step=3, samples_per_prompt=4, relabel=True)
    # 3 prompts, 2 rotations, 2 responses each; scored in 2 parts, part p at rotation p
    drawn = seen["drawn"].log_probs.view(3, 2, 2, -1)
    scored = seen["scored"].log_probs.detach().view(2, 3, 2, 2, -1)
    for rotation in (0, 1):
        torch.testing.assert_close(scored[rotation, :, rotation], drawn[:, rotation], atol=1e-4, rtol=0)
    assert (scored[1, :, 0] - drawn[:, 0]).abs().max() > 1e-2  # and elsewhere it is another policy's


@pytest.mark.parametrize(
    ("objectives", "samples", "expected"),
    [(2, 4, 2), (3, 4, 2), (3, 6, 3), (3, 8, 2), (4, 8, 4), (1, 4, 1), (2, 3, 1)],
)
def test_samples_are_divided_among_as_many_rotations_as_there_can_be_with_two_each(objectives, samples, expected):
    assert weightings.rotations_of_samples(objectives, samples) == expected


def test_policies_that_are_still_the_reference_learn_from_every_response_alike(base, tmp_path):
    policy = make_policy(base)
    for name, tensor in policy.experts.tensors().items():
        if name.endswith(".b"):
            tensor.zero_()  # as before the first step of every training
    row = train(base, tmp_path, policy, steps=1, samples_per_prompt=4, relabel=True).curve[0]
    assert row["reuse"] == pytest.approx(2) and row["kl"] == pytest.approx(0, abs=1e-6)


def test_the_curve_holds_the_norm_of_the_gradients_before_they_are_clipped(base, tmp_path):
    free = train(base, tmp_path / "free", gradient_clip=1e9, accumulate=2).curve
    clipped = train(base, tmp_path / "clipped", gradient_clip=1e-9, accumulate=2).curve
    assert clipped[0]["gradient_norm"] == clipped[1]["gradient_norm"] == free[0]["gradient_norm"] > 1e-3
    assert clipped[2]["gradient_norm"] != clipped[0]["gradient_norm"]


def test_regression_learns_the_value_of_a_weighting_from_earlier_steps():
    torch.manual_seed(0)
    baseline, rest = baselines.WeightingRegression(2, ridge=1e-6), []
    for _ in range(40):
        w = torch.rand(8, 1, dtype=torch.float64)
        group = baselines.Group(torch.cat([w, 1 - w], dim=1), torch.zeros(8, 4))
        returns = (3 * w - w.square())[:, 0].repeat_interleave(2)  # quadratic in w, so the fit can be exact
        advantages, loss = baseline(returns, group)
        rest.append(advantages.abs().max().item())
        assert loss == 0
    assert rest[0] > 1 and rest[-1] < 1e-3  # the first step knows nothing, and what is fitted is never the step itself


def test_learned_value_lowers_its_own_loss():
    baseline = baselines.LearnedValue(4, 2)
    optimizer = torch.optim.Adam(baseline.parameters(), lr=0.1)
    group = baselines.Group(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 4))
    losses = []
    for _ in range(60):
        advantages, loss = baseline(torch.tensor([2.0, 2.0, -1.0, -1.0]), group)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.5) and losses[-1] < 0.05  # mean of 4, 4, 1, 1
    assert not advantages.requires_grad


TWO_PROCESSES = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
import test_training as t
module = t.train(Path(sys.argv[2]), Path(sys.argv[3]), devices=2, prompts_per_step=2)
if module.trainer.is_global_zero:
    values = {name: tensor.flatten().tolist() for name, tensor in module.policy.experts.tensors().items()}
    Path(sys.argv[3], "out.json").write_text(json.dumps([values, module.generated_tokens]))
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_with_twice_the_batch_does(base, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    done = subprocess.run(
        [sys.executable, script, Path(__file__).parent, base, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    values, tokens = json.loads((tmp_path / "out.json").read_text())
    module = train(base, tmp_path / "one", prompts_per_step=4)
    assert tokens == module.generated_tokens
    for name, tensor in module.policy.experts.tensors().items():
        torch.testing.assert_close(torch.tensor(values[name]), tensor.flatten(), atol=1e-5, rtol=1e-4)
