"""The exact optimum: golden values by hand, properties, a second implementation, and the case where zero-shot mixing fails."""

import itertools
import json
import math
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clp_lightning import weightings
from clp_lightning.errors import UsageError
from clp_lightning.oracle import exact as oracle
from clp_lightning.oracle import run, testbed
from clp_lightning.oracle.exact import Problem
from clp_lightning.oracle.report import report
from clp_lightning.policy.steerable import SteerablePolicy

GRID = weightings.lattice(2, 5)


def random_problem(seed: int, objectives: int = 2, vocabulary: int = 3, length: int = 2, alpha: float = 0.3) -> Problem:
    rng = np.random.default_rng(seed)
    ref = rng.standard_normal((2, vocabulary**length))
    ref -= np.log(np.exp(ref).sum(-1, keepdims=True))
    return Problem(ref, rng.standard_normal((2, vocabulary**length, objectives)), alpha)


def random_policies(seed: int, problem: Problem, count: int) -> np.ndarray:
    logits = np.random.default_rng(seed).standard_normal((count, *problem.ref_log_probs.shape)) * 2
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_optimum_of_two_answers_by_hand():
    # pi_ref = (1/2, 1/2), R = (1, 0), alpha = 1/2: the tilt is (1 - 1/2) / (1/2) = 1, so pi* = (e, 1) / (e + 1), and
    # V* = alpha log E_ref exp(tilt R) = 1/2 log((e + 1) / 2)
    problem = Problem(np.log([[0.5, 0.5]]), np.array([[[1.0], [0.0]]]), 0.5)
    best = oracle.optimum(problem, np.ones((1, 1)))
    np.testing.assert_allclose(np.exp(best[0, 0]), [math.e / (math.e + 1), 1 / (math.e + 1)])
    np.testing.assert_allclose(oracle.regularized_rewards(problem, best), [[0.5 * math.log((math.e + 1) / 2)]])
    # the reference policy itself: 1/2 * 1/2 - 1/2 * 0
    np.testing.assert_allclose(oracle.regularized_rewards(problem, problem.ref_log_probs[None]), [[0.25]])
    # a policy that always gives the first answer: 1/2 * 1 - 1/2 * log 2
    certain = np.array([[[0.0, -np.inf]]])
    np.testing.assert_allclose(oracle.regularized_rewards(problem, certain), [[0.5 - 0.5 * math.log(2)]])
    # one objective: the share of what can be gained over the reference policy
    assert oracle.score(problem, np.ones((1, 1)), certain).hypervolume_ratio == 0  # it gains less than nothing
    assert oracle.score(problem, np.ones((1, 1)), best) == (1.0, 0.0, 0.0)


@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_no_policy_beats_the_optimum(seed, objectives, alpha):
    problem = random_problem(seed, objectives, alpha=alpha)
    points = weightings.lattice(objectives, 4)
    best = oracle.optimum(problem, points)
    values = oracle.regularized_rewards(problem, best)
    # V*(w) = alpha log E_ref exp((1 - alpha) / alpha w.R): the same number without the optimal policy
    tilted = (1 - alpha) / alpha * np.einsum("wk,pnk->wpn", points, problem.rewards)
    expected = alpha * np.log((np.exp(problem.ref_log_probs) * np.exp(tilted)).sum(-1)).mean(-1)
    np.testing.assert_allclose((values * points).sum(-1), expected, rtol=1e-9, atol=1e-9)
    others = oracle.regularized_rewards(problem, random_policies(seed, problem, len(points)))
    assert ((values[:, None] - others[None]) * points[:, None]).sum(-1).min() >= -1e-9  # at no weighting


@given(st.integers(0, 10**6), st.integers(2, 3))
@settings(max_examples=30, deadline=None)
def test_optimal_experts_mixed_over_whole_responses_are_the_optimum(seed, objectives):
    problem, points = random_problem(seed, objectives), weightings.lattice(objectives, 4)
    experts = oracle.optimum(problem, np.eye(objectives))
    np.testing.assert_allclose(oracle.mix_sequences(experts, points), oracle.optimum(problem, points), atol=1e-9)
    assert oracle.score(problem, points, oracle.mix_sequences(experts, points)).hypervolume_ratio == pytest.approx(1)


def naive_token_mix(experts: np.ndarray, weighting: np.ndarray, vocabulary: int, length: int) -> np.ndarray:
    """Token by token, with dictionaries of probabilities: slow, and nothing like the arrays of `mix_tokens`."""
    words = list(itertools.product(range(vocabulary), repeat=length))
    out = np.zeros(experts.shape[1:])
    for p in range(experts.shape[1]):
        tables = [dict(zip(words, np.exp(expert[p]), strict=True)) for expert in experts]

        def begins(table, prefix):
            return sum(value for word, value in table.items() if word[: len(prefix)] == prefix)

        for n, word in enumerate(words):
            for t in range(length):
                scores = {
                    token: math.prod(
                        (begins(table, (*word[:t], token)) / begins(table, word[:t])) ** weight
                        for table, weight in zip(tables, weighting, strict=True)
                    )
                    for token in range(vocabulary)
                }
                out[p, n] += math.log(scores[word[t]] / sum(scores.values()))
    return out


def test_token_mixing_agrees_with_a_naive_implementation():
    problem = random_problem(3, vocabulary=3, length=3)
    experts = random_policies(4, problem, 2)
    mixed = oracle.mix_tokens(experts, GRID, 3)
    for weighting, policy in zip(GRID, mixed, strict=True):
        np.testing.assert_allclose(policy, naive_token_mix(experts, weighting, 3, 3), atol=1e-9)
    np.testing.assert_allclose(mixed[[0, -1]], experts[::-1], atol=1e-9)  # a one-hot weighting is its expert


def test_for_one_token_both_ways_of_mixing_are_the_same():
    experts = random_policies(1, random_problem(0, vocabulary=5, length=1), 2)
    np.testing.assert_allclose(oracle.mix_tokens(experts, GRID, 5), oracle.mix_sequences(experts, GRID), atol=1e-9)


# The paper's argument against zero-shot mixing: the best compromise is an answer that no single-reward expert gives.
# Answers of two tokens from {0, 1, 2}. "0 0" earns (1, 0), "0 1" earns (0, 1), everything that starts with 1 earns
# (0.8, 0.8), the rest nothing. Both experts begin with 0, so whatever mixes them token by token begins with 0 as well, and
# then can only toss a coin between the two extremes: (0.5, 0.5), where (0.8, 0.8) was to be had.
REWARDS = {(0, 0): (1.0, 0.0), (0, 1): (0.0, 1.0), (1, 0): (0.8, 0.8), (1, 1): (0.8, 0.8), (1, 2): (0.8, 0.8)}
COMPROMISE = Problem(
    np.full((1, 9), -math.log(9)),
    np.array([[REWARDS.get(word, (0.0, 0.0)) for word in itertools.product(range(3), repeat=2)]]),
    0.02,
)


def rewards_at_even_weighting(log_probs: np.ndarray) -> np.ndarray:
    return np.exp(log_probs[len(GRID) // 2, 0]) @ COMPROMISE.rewards[0]


def test_zero_shot_mixing_must_fail_where_no_expert_gives_the_compromise():
    experts = oracle.optimum(COMPROMISE, np.eye(2))
    best, mixed = oracle.optimum(COMPROMISE, GRID), oracle.mix_tokens(experts, GRID, 3)
    np.testing.assert_allclose(rewards_at_even_weighting(best), [0.8, 0.8], atol=1e-3)
    np.testing.assert_allclose(rewards_at_even_weighting(mixed), [0.5, 0.5], atol=1e-3)
    # tilt 49: an expert begins with 1 with probability 3 e^(0.8 * 49) / (e^49 + ...), about 3 e^-9.8
    assert np.exp(experts[:, 0, 3:6]).sum(-1).max() < 2e-4
    assert oracle.score(COMPROMISE, GRID, mixed).regret_max > 0.25
    assert oracle.score(COMPROMISE, GRID, oracle.mix_sequences(experts, GRID)).regret_max < 1e-9


def test_where_zero_shot_mixing_fails_training_on_all_weightings_does_not():
    """The same tabular model, logits per prefix that are averaged with w: soups are its token mixing, CLP trains them."""
    theta = torch.zeros(2, 4, 3, dtype=torch.float64, requires_grad=True)  # expert, prefix (none, 0, 1, 2), next token
    torch.manual_seed(0)
    theta.data.normal_(std=0.1)
    w, rewards = torch.as_tensor(GRID), torch.as_tensor(COMPROMISE.rewards[0])

    def policies() -> torch.Tensor:
        conditional = torch.einsum("wk,kpt->wpt", w, theta).log_softmax(-1)
        return (conditional[:, 0, :, None] + conditional[:, 1:]).flatten(1)  # [W, 9]

    optimizer = torch.optim.Adam([theta], lr=0.1)
    for step in range(1500):
        alpha = max(0.02, 0.5 * (0.02 / 0.5) ** (step / 1000))
        log_probs = policies()
        kl = (log_probs.exp() * (log_probs + math.log(9))).sum(-1)
        value = (1 - alpha) * ((log_probs.exp() @ rewards) * w).sum(-1) - alpha * kl
        optimizer.zero_grad()
        (-value.mean()).backward()
        optimizer.step()
    trained = oracle.score(COMPROMISE, GRID, policies().detach().numpy()[:, None])
    experts = oracle.optimum(COMPROMISE, np.eye(2))
    zero_shot = oracle.score(COMPROMISE, GRID, oracle.mix_tokens(experts, GRID, 3))
    assert trained.regret_mean < zero_shot.regret_mean / 2


@pytest.fixture(scope="module")
def bed():
    return testbed.Testbed(2, seed=0)


def test_testbed_is_normalized_and_the_same_at_every_call(bed):
    probs = np.exp(bed.ref_log_probs)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.einsum("pn,pnk->k", probs, bed.rewards) / 8, 0, atol=1e-6)
    np.testing.assert_allclose(np.einsum("pn,pnk->k", probs, bed.rewards**2) / 8, 1, atol=1e-6)
    assert np.corrcoef(bed.rewards[..., 0].ravel(), bed.rewards[..., 1].ravel())[0, 1] < -0.5
    again = testbed.Testbed(2, seed=0)
    np.testing.assert_array_equal(again.ref_log_probs, bed.ref_log_probs)
    np.testing.assert_array_equal(again.rewards, bed.rewards)


def test_the_trainer_sees_the_rewards_that_the_optimum_knows(bed):
    # "c a h" is 2 * 64 + 0 * 8 + 7 = 135; the second prompt is "b"
    np.testing.assert_array_equal(bed.reward(["b"], ["c a h"]), bed.rewards[[1], [135]])
    letters = torch.tensor([[2, 0, 7]])
    decoded = bed.tokenizer.batch_decode(letters, skip_special_tokens=True)
    np.testing.assert_array_equal(bed.reward(["b"], decoded), bed.rewards[[1], [135]])


@pytest.mark.parametrize(
    "name",
    [
        "clp-full",
        "clp-attn",
        "clp-logit",
        "rewarded-soups",
        "smoothed-soups",
        "bone-soups",
        "bilinear",
        "singular",
        "mo-odpo",
        "mi-epo",
        "gdpo",
    ],
)
def test_the_project_trainer_gains_on_the_testbed(bed, name):
    points = weightings.lattice(2, 3)
    training = testbed.training(0.3, 40).model_copy(update={"alpha_start": None})
    policy = bed.train(testbed.METHODS[name], training, show_progress=False)
    log_probs = testbed.read_out(policy, points)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=1e-5)
    # 0 is the reference policy, by standardization
    scalarized = np.einsum("wk,pnk,wpn->", points, bed.rewards, np.exp(log_probs)) / (8 * len(points))
    assert scalarized > 0.1


def test_the_reference_that_is_looked_up_is_the_one_that_the_model_computes(bed):
    policy = bed.train(testbed.METHODS["clp-prompt"], testbed.training(0.3, 2), show_progress=False)
    prompts = policy.tokenize(["b", "e"])
    ids = torch.tensor([[2, 0, 7], [0, 0, 0], [7, 7, 7], [1, 5, 3]])  # two responses per prompt
    mask = torch.ones_like(ids, dtype=torch.bool)
    looked_up = policy.score(prompts, ids, mask, None, samples=2)
    with torch.no_grad():
        computed = SteerablePolicy.score_fully(policy, prompts, ids, mask, None, samples=2)[0]
    torch.testing.assert_close(looked_up, computed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clp-full", "clp-prompt"])
def test_responses_drawn_from_the_table_are_those_of_the_model(bed, name):
    policy = bed.train(testbed.METHODS[name], testbed.training(0.3, 2), show_progress=False)
    w, samples = np.array([[0.3, 0.7], [1.0, 0.0]]), 500
    coefficients = policy.coefficients(w, 2)
    prompts = policy.tokenize(["b", "e"], coefficients)
    uniform = torch.rand(2 * samples, 3, dtype=torch.float64)
    drawn = policy.rollout(prompts, coefficients, samples=samples, uniform=uniform)
    scored = policy.score(prompts, drawn.ids, drawn.mask, coefficients, samples=samples)
    computed = SteerablePolicy.score_fully(policy, prompts, drawn.ids, drawn.mask, coefficients, samples=samples)[0]
    torch.testing.assert_close(drawn.log_probs, computed, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored, computed, atol=1e-5, rtol=0)
    # the gradient goes through the table as it goes through the model
    parameters = list(policy.experts.parameters())
    for ours, plain in zip(
        torch.autograd.grad(scored.sum(), parameters), torch.autograd.grad(computed.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=2e-2, rtol=1e-4)  # of sums over 1,000 responses
    # systematic sampling: S points a distance of 1 / S apart hit an interval of length p either floor(S p) or ceil(S p) times
    numbers = (drawn.ids * testbed.PLACES).sum(-1).view(2, samples)
    expected = samples * np.exp(testbed.read_out(policy, w)[[0, 1], [1, 4]])
    for row in range(2):
        counts = torch.bincount(numbers[row], minlength=testbed.RESPONSES).numpy()
        assert (np.abs(counts - expected[row]) < 1 + 1e-3).all()


def test_a_weighting_in_the_prompt_is_readable(bed):
    policy = bed.train(testbed.METHODS["clp-prompt"], testbed.training(0.3, 1), show_progress=False)
    prompts = policy.tokenize(["b"], torch.tensor([[0.35, 0.65]]))
    written = bed.tokenizer.convert_ids_to_tokens(prompts.ids[0].tolist())
    assert written == ["u", *"0.35", ",", "v", *"0.65", "\n", "b"]  # a word that it lacked would be <pad>


def test_read_out_is_what_the_policy_says(bed):
    policy = bed.train(testbed.METHODS["clp-attn"], testbed.training(0.3, 2), show_progress=False)
    w = np.array([[0.3, 0.7]])
    read = testbed.read_out(policy, w)[0, 1, 135]
    coefficients = policy.coefficients(w, 1)
    with torch.no_grad():
        log_probs = SteerablePolicy.score_fully(
            policy,
            policy.tokenize(["b"], coefficients),
            torch.tensor([[2, 0, 7]]),
            torch.ones(1, 3, dtype=torch.bool),
            coefficients,
        )[0]
    assert read == pytest.approx(float(log_probs.sum()), abs=1e-5)


def made_up_result(objectives):
    points = weightings.lattice(objectives, 3)
    methods = [
        {"method": name, "hypervolume_ratio": 0.5, "regret_mean": 0.1, "regret_max": 0.2, "seconds": 1.0,
         "regularized_rewards": (points * scale).tolist()}
        for scale, name in enumerate(["reference", "clp-full", "exact experts, per token", "optimum"])
    ]  # fmt: skip
    return {
        "seed": 0,
        "alpha": 0.3,
        "objectives": objectives,
        "steps": 1,
        "weightings": points.tolist(),
        "methods": methods,
    }


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_picture_for_every_number_of_objectives(tmp_path, objectives):
    from clp_lightning.oracle.report import draw

    draw(made_up_result(objectives), tmp_path / "oracle.png")
    draw(made_up_result(objectives), tmp_path / "oracle.svg")
    assert (tmp_path / "oracle.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "oracle.svg").read_text()
    assert "<svg" in text and sorted(path.name for path in tmp_path.iterdir()) == ["oracle.png", "oracle.svg"]


@pytest.mark.parametrize("arguments", [["--objectives", "0"], ["--alpha", "0"], ["--alpha", "1"], ["--steps", "0"]])
def test_command_refuses_what_has_no_optimum(arguments):
    from typer.testing import CliRunner

    from clp_lightning.cli.app import app

    done = CliRunner().invoke(app, ["oracle", *arguments])
    assert done.exit_code == 2 and arguments[0] in done.output and "Traceback" not in done.output


def test_one_method_alone_is_trained_when_it_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report(2, 0.3, 0, steps=2, picture=None, as_json=True, methods=["clp-logit"])
    rows = {row["method"] for row in json.loads(capsys.readouterr().out)["methods"]}
    assert rows == {"reference", "clp-logit", "exact experts, per token", "exact experts, per sequence"}
    report(2, 0.3, 0, steps=2, picture=None, as_json=True, methods=["bone-soups"])
    rows = [row["method"] for row in json.loads(capsys.readouterr().out)["methods"]]
    assert rows[1:3] == ["bone-soups", "bone-soups, averaged with w"]
    trained = []
    monkeypatch.setattr(run, "_train_all", lambda context, names, *_: trained.append(list(names)) or {})
    for methods in ([], ["all"], ["mo-odpo", "clp-full", "mo-odpo"]):
        run.run(2, 0.3, 0, steps=2, progress=print, methods=methods)
    assert trained[0] == list(testbed.DEFAULT) and set(trained[1]) == set(testbed.METHODS) == set(testbed.QUEUE)
    assert trained[2] == ["clp-full", "mo-odpo"]
    with pytest.raises(
        UsageError, match=r"--method clp: no such method here; choose among clp-full, clp-attn.*, or all"
    ):
        report(2, 0.3, 0, steps=2, picture=None, as_json=True, methods=["clp"])


def test_bone_soups_are_read_at_the_coefficients_that_add_up_to_the_weighting():
    # M = (0.7, 0.3; 0.3, 0.7), M' c = w: (0.7, -0.3) / 0.4 at (1, 0), and (0.25, 0.75) at (0.4, 0.6)
    points = np.array([[1.0, 0.0], [0.4, 0.6]])
    rows = testbed.readings("bone-soups", points)
    np.testing.assert_allclose(rows.pop("bone-soups"), [[1.75, -0.75], [0.25, 0.75]])
    assert rows == {"bone-soups, averaged with w": points}
    assert testbed.readings("clp-full", points) == {"clp-full": points}


@pytest.mark.slow
def test_command_prints_json_and_writes_the_picture(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clp_lightning.cli", "oracle", "--steps", "10", "--objectives", "3", "--json"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert {key: printed[key] for key in ("seed", "alpha", "objectives", "steps")} == {
        "seed": 0, "alpha": 0.3, "objectives": 3, "steps": 10,
    }  # fmt: skip
    rows = {row["method"]: row for row in printed["methods"]}
    assert {
        *testbed.DEFAULT,
        "reference",
        "logit-mixing, per token",
        "exact experts, per sequence",
    } <= rows.keys()
    assert rows["exact experts, per sequence"]["hypervolume_ratio"] == pytest.approx(1)
    assert set(rows["clp-full"]) == {"method", "hypervolume_ratio", "regret_mean", "regret_max", "seconds"}
    assert (tmp_path / "reports" / "oracle-alpha0.3-k3-seed0.png").stat().st_size > 10_000


@pytest.mark.slow
def test_processes_end_with_the_command_that_was_killed(tmp_path):
    command = [sys.executable, "-m", "clp_lightning.cli", "oracle", "--steps", "100000"]
    main = psutil.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (busy := [child for child in main.children(recursive=True) if child.cpu_times().user > 8]):  # it trains
        assert main.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    family = main.children(recursive=True)
    assert len(family) > len(busy) > 0
    main.kill()
    main.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    for process in alive:
        process.kill()
    assert not alive
