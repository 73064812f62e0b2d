"""J(w) = (1 - alpha) w.R - alpha KL: by hand, against the oracle's closed form, and a policy that is bought with KL."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax, logsumexp

from clp_lightning.errors import ClpError
from clp_lightning.frontier import hypervolume, objective, regret, regularized
from clp_lightning.oracle import exact
from clp_lightning.training.losses import regularized_return
from clp_lightning.weightings import lattice

NUMBERS = st.floats(-10, 10)


def test_by_hand():
    # two prompts, one weighting (0.25, 0.75), alpha 0.2:
    # 0.8 (0.25 * 1 + 0.75 * 2) - 0.2 * 3 = 0.8 * 1.75 - 0.6 = 0.8;  0.8 (0.25 * 4 + 0) - 0.2 * (-1) = 1.0
    rewards, kl = np.array([[[1.0, 2.0]], [[4.0, 0.0]]]), np.array([[3.0], [-1.0]])
    np.testing.assert_allclose(objective(rewards, kl, [[0.25, 0.75]], 0.2), [[0.8], [1.0]])
    # 0.8 * (1, 2) - 0.6 and 0.8 * (4, 0) + 0.2
    np.testing.assert_allclose(regularized(rewards, kl, 0.2), [[[0.2, 1.0]], [[3.4, 0.2]]])


def test_each_weighting_may_have_its_kl_strength():
    # R = 1, KL = 2 at alpha 0, 0.5 and 1: 1, 0.5 - 1 and -2
    values = objective(np.ones((1, 3, 1)), np.full((1, 3), 2.0), np.ones((3, 1)), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(values, [[1.0, -0.5, -2.0]])


@given(arrays(float, (4, 3, 2), elements=NUMBERS), arrays(float, (4, 3), elements=NUMBERS), st.floats(0, 1))
def test_it_is_what_training_maximizes_and_linear(rewards, kl, alpha):
    weights = lattice(2, 3)
    values = objective(rewards, kl, weights, alpha)
    scalarized = torch.tensor((rewards * weights).sum(-1))
    np.testing.assert_allclose(values, regularized_return(scalarized, torch.tensor(kl), alpha), atol=1e-9)
    # J of the means is the mean of J, and w times the regularized vectors
    np.testing.assert_allclose(objective(rewards.mean(0), kl.mean(0), weights, alpha), values.mean(0), atol=1e-9)
    np.testing.assert_allclose((regularized(rewards, kl, alpha) * weights).sum(-1), values, atol=1e-9)


def oracle(objectives: int, alpha: float) -> tuple[exact.Problem, np.ndarray]:
    rng = np.random.default_rng(objectives)
    ref = log_softmax(rng.normal(size=(5, 64)), axis=-1)
    return exact.Problem(ref, rng.normal(size=(5, 64, objectives)), alpha), lattice(objectives, 6)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_j_of_exact_policies_is_the_exact_value(objectives, alpha):
    """The optimum's value has a closed form: alpha log E_ref exp((1 - alpha) / alpha w.R) (Korbak et al. 2022)."""
    problem, weightings = oracle(objectives, alpha)
    best = exact.optimum(problem, weightings)
    probs = np.exp(best)
    rewards = np.einsum("wpn,pnk->pwk", probs, problem.rewards)
    kl = (probs * (best - problem.ref_log_probs)).sum(-1).T
    tilted = np.einsum("wk,pnk->pwn", weightings, problem.rewards) * (1 - alpha) / alpha
    truth = alpha * logsumexp(problem.ref_log_probs[:, None] + tilted, axis=-1)
    np.testing.assert_allclose(objective(rewards, kl, weightings, alpha), truth, atol=1e-6)
    vectors = regularized(rewards.mean(0), kl.mean(0), alpha)
    np.testing.assert_allclose(vectors, exact.regularized_rewards(problem, best), atol=1e-6)


def test_a_frontier_that_is_bought_with_kl_is_told_from_one_that_is_not():
    """One policy is the optimum; the other goes on, past it, for rewards that cost more KL than they are worth."""
    problem, weightings = oracle(2, 0.2)
    optimum, greedy = (exact.optimum(problem._replace(alpha=alpha), weightings) for alpha in (0.2, 0.05))
    rewards, kl = {}, {}
    for name, log_probs in (("optimum", optimum), ("bought", greedy)):
        probs = np.exp(log_probs)
        rewards[name] = np.einsum("wpn,pnk->wk", probs, problem.rewards) / 5
        kl[name] = (probs * (log_probs - problem.ref_log_probs)).sum(-1).mean(-1)
    point = [-3.0, -3.0]
    assert (kl["bought"] > kl["optimum"]).all()
    assert hypervolume(rewards["bought"], point) > hypervolume(rewards["optimum"], point) + 1
    volumes = {name: hypervolume(regularized(rewards[name], kl[name], 0.2), point) for name in rewards}
    assert volumes["bought"] < volumes["optimum"] - 1
    values = np.stack([objective(rewards[name], kl[name], weightings, 0.2) for name in ("optimum", "bought")])
    # the optimum is ahead at every weighting, and the other's regret is what it lacks there
    assert (regret(values)[0] == 0).all()
    np.testing.assert_allclose(regret(values)[1], values[0] - values[1])
    assert (regret(values)[1] > 0.01).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objective(np.zeros((2, 3, 2)), np.zeros((2, 3)), np.ones((2, 2)) / 2, 0.1), "its weighting"),
        (lambda: objective(np.zeros((2, 2)), np.zeros(2), np.ones((2, 2)), 0.1), "sum to 1"),
        (lambda: regularized(np.zeros((2, 3, 2)), np.zeros((2, 2)), 0.1), "its KL"),
        (lambda: regularized(np.zeros((3, 2)), np.zeros(3), 1.5), "between 0 and 1, found 1.5"),
        (lambda: regularized(np.zeros((3, 2)), np.full(3, np.nan), 0.5), "KL must be finite numbers, found 3"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ClpError, match=message):
        call()
