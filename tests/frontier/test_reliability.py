"""The worst prompts, the spread over prompts and where a policy lands: golden values by hand, definitions, properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_lightning.errors import ClpError
from clp_lightning.frontier.bootstrap import Bootstrap
from clp_lightning.frontier.reliability import covariance_determinant, cvar, tradeoff_distance


def test_cvar_by_hand():
    # the worst half of (4, 1, 3, 2) is (1, 2), mean 1.5; of (0, 0, 8, 8) it is (0, 0); averaged 0.75
    assert cvar([[4, 1, 3, 2], [0, 0, 8, 8]], 0.5).mean() == pytest.approx(0.75)
    # a share of 3/8 of four prompts holds one and a half of them: (1 + 2 / 2) / 1.5 = 4/3
    assert cvar([[4, 1, 3, 2]], 0.375).mean() == pytest.approx(4 / 3)
    with pytest.raises(ClpError, match="share of the prompts above 0"):
        cvar([[1.0, 2.0]], 0)


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 3))
def test_cvar_is_the_mean_of_the_worst_by_sorting(seed, worst, weightings):
    rng = np.random.default_rng(seed)
    utilities = rng.integers(-3, 4, (weightings, 12)).astype(float)  # with ties
    expected = np.sort(utilities, axis=1)[:, :worst].mean()
    assert cvar(utilities, worst / 12).mean() == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 3))
def test_the_determinant_is_numpys(seed, objectives, weightings):
    rewards = (
        np.random.default_rng(seed).integers(-2, 3, (weightings, 6, objectives)).astype(float)
    )  # singular ones, too
    each = [np.linalg.det(np.atleast_2d(np.cov(rows.T, bias=True))) for rows in rewards]
    assert covariance_determinant(rewards).mean() == pytest.approx(np.mean(each), abs=1e-9)


@pytest.mark.parametrize("statistic", ["cvar", "determinant"])
def test_the_spread_of_prompts_values_is_that_of_the_statistic(statistic):
    rewards = np.random.default_rng(1).gamma(2.0, size=(1, 400, 2))
    values = cvar(rewards.sum(-1)) if statistic == "cvar" else covariance_determinant(rewards)
    assert values.shape == (400,)
    rng, redrawn = np.random.default_rng(2), []
    for _ in range(2000):
        drawn = rewards[:, rng.integers(0, 400, 400)]
        redrawn.append((cvar(drawn.sum(-1)) if statistic == "cvar" else covariance_determinant(drawn)).mean())
    linear = Bootstrap(400, 2000, 0).averages(values[None])[0, 1:]
    assert linear.std() == pytest.approx(np.std(redrawn), rel=0.1)


def test_trade_offs_by_hand():
    low, high = [0, 0], [2, 4]
    # gains (1, 1) / (2, 4) = (0.5, 0.25): shares (2/3, 1/3); asked for (1/3, 2/3): half of 1/3 + 1/3
    assert tradeoff_distance([[1 / 3, 2 / 3]], [[1, 1]], low, high) == pytest.approx(1 / 3)
    assert tradeoff_distance([[2 / 3, 1 / 3]], [[1, 1]], low, high) == pytest.approx(0)
    # nothing is gained: equal parts, half of 0.5 + 0.5 away from a corner; an objective without a range gains nothing
    assert tradeoff_distance([[1, 0]], [[-1, 0]], low, high) == pytest.approx(0.5)
    assert tradeoff_distance([[1, 0]], [[1, 3]], [0, 3], [2, 3]) == pytest.approx(0)
    # of many sets each has its own ends
    many = tradeoff_distance([[1, 0]], [[[1, 1]], [[1, 0]]], [low, low], [high, high])
    np.testing.assert_allclose(many, [1 / 3, 0])
