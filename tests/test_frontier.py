"""Frontier statistics: golden values by hand, properties, a second implementation of each."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau

from clp_lightning import frontier
from clp_lightning.errors import ClpError


def points(objectives: int, most: int = 6):
    numbers = st.floats(-4, 4, width=32).map(lambda value: round(value, 2))  # rounding makes ties, the hard case
    return st.integers(1, most).flatmap(lambda n: arrays(float, (n, objectives), elements=numbers))


any_points = st.integers(2, 3).flatmap(points)


def hypervolume_by_inclusion_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """Volume of the union of the boxes [reference, point]; a subset's intersection is the box of its minima."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            total += (-1) ** (size + 1) * np.prod(np.maximum(np.min(subset, axis=0) - reference, 0))
    return total


def test_hypervolume_of_a_staircase_in_two_dimensions():
    # Boxes from (0, 0): 1x3, 2x2, 3x1. Left to right the strips have heights 3, 2, 1 and width 1 each: 3 + 2 + 1 = 6.
    assert frontier.hypervolume([[1, 3], [2, 2], [3, 1]], [0, 0]) == 6


def test_hypervolume_of_two_boxes_in_three_dimensions():
    # |2x1x1| + |1x1x3| - |their intersection, 1x1x1| = 2 + 3 - 1 = 4.
    assert frontier.hypervolume([[2, 1, 1], [1, 1, 3]], [0, 0, 0]) == 4


def test_points_below_the_reference_point_and_no_points_contribute_nothing():
    # (5, -1) is below in one objective only and still encloses nothing; (1, 2) encloses 2.
    assert frontier.hypervolume([[5, -1], [1, 2]], [0, 0]) == 2
    assert frontier.hypervolume([[5, -1], [0, 7]], [0, 0]) == 0
    assert frontier.hypervolume(np.zeros((0, 2)), [0, 0]) == 0


@given(any_points)
def test_hypervolume_agrees_with_inclusion_exclusion(values):
    reference = np.full(values.shape[1], -1.5)
    expected = hypervolume_by_inclusion_exclusion(values, reference)
    assert frontier.hypervolume(values, reference) == pytest.approx(expected, abs=1e-8)


@given(any_points, st.data())
def test_dominated_points_and_order_do_not_change_the_hypervolume(values, data):
    reference = np.full(values.shape[1], -5.0)
    volume = frontier.hypervolume(values, reference)
    worse = values - np.array(data.draw(st.lists(st.floats(0, 3), min_size=values.shape[1], max_size=values.shape[1])))
    order = data.draw(st.permutations(range(len(values))))
    assert frontier.hypervolume(np.concatenate([values, worse]), reference) == pytest.approx(volume, abs=1e-8)
    assert frontier.hypervolume(values[order], reference) == pytest.approx(volume, abs=1e-8)
    kept = values[frontier.nondominated(values)]
    assert frontier.hypervolume(kept, reference) == pytest.approx(volume, abs=1e-8)


@given(any_points, st.data())
def test_nondominated_agrees_with_the_definition_in_any_order(values, data):
    expected = [not any((q >= p).all() and (q > p).any() for q in values) for p in values]
    assert frontier.nondominated(values).tolist() == expected
    order = data.draw(st.permutations(range(len(values))))
    assert frontier.nondominated(values[order]).tolist() == [expected[i] for i in order]


def test_equal_points_do_not_dominate_each_other():
    assert frontier.nondominated([[1, 1], [1, 1], [0, 2], [0, 1]]).tolist() == [True, True, True, False]
    assert frontier.nondominated(np.zeros((0, 2))).tolist() == []


def test_dominated_share():
    # (2, 2) dominates (1, 2) and (0, 0), equals (2, 2), and does not reach (3, 0): 2 of 4.
    assert frontier.dominated_share([[2, 2], [-1, -1]], [[1, 2], [0, 0], [2, 2], [3, 0]]) == 0.5
    assert frontier.dominated_share([[1, 1]], np.zeros((0, 2))) == 0


@given(any_points)
def test_no_set_dominates_its_own_front(values):
    front = values[frontier.nondominated(values)]
    assert frontier.dominated_share(values, front) == 0


def test_steerability_of_obedient_inverted_and_deaf_policies():
    weights = [0, 0.25, 0.5, 0.75, 1]
    assert frontier.steerability(weights, [1, 2, 3, 4, 9]) == 1
    assert frontier.steerability(weights, [5, 4, 3, 2, 1]) == -1
    assert frontier.steerability(weights, [2, 2, 2, 2, 2]) == 0
    # one of ten pairs is in the wrong order: (9 - 1) / 10
    assert frontier.steerability(weights, [1, 2, 4, 3, 5]) == pytest.approx(0.8)


@pytest.mark.filterwarnings("ignore::scipy.stats._axis_nan_policy.SmallSampleWarning")
@given(points(2, most=9))
def test_steerability_agrees_with_scipy(values):
    expected = kendalltau(values[:, 0], values[:, 1]).statistic
    assert frontier.steerability(values[:, 0], values[:, 1]) == pytest.approx(np.nan_to_num(expected), abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_rejected(bad):
    values = np.zeros((2, 3, 2))
    values[1, 1, 1] = bad
    for call in (
        lambda: frontier.nondominated(values[1]),
        lambda: frontier.hypervolume(values[1], [0, 0]),
        lambda: frontier.hypervolume([[1, 1]], [0, bad]),
        lambda: frontier.dominated_share([[1, 1]], values[1]),
        lambda: frontier.steerability([0, 1], [0, bad]),
        lambda: frontier.bootstrap({"a": values}, lambda means: 0.0, 10, 0),
        lambda: frontier.interval([0, bad]),
    ):
        with pytest.raises(ClpError, match="finite"):
            call()


def test_shapes_that_disagree_are_rejected():
    with pytest.raises(ClpError, match="2 objectives, the reference point has 3"):
        frontier.hypervolume([[1, 1]], [0, 0, 0])
    with pytest.raises(ClpError, match="same prompts"):
        frontier.resampled_means({"a": np.zeros((2, 3, 2)), "b": np.zeros((2, 4, 2))}, 10, 0)


def test_resamples_are_means_of_prompts_and_shared_by_all_methods():
    # Prompt p has the reward 10**p, so that a resampled mean times P spells the counts of the prompts as digits.
    values = np.array([[[1.0], [10.0], [100.0]]])
    means = frontier.resampled_means({"a": values, "b": 2 * np.concatenate([values, values])}, 50, 0)
    digits = [[int(digit) for digit in f"{round(float(mean) * 3):03d}"] for mean in means["a"][:, 0, 0]]
    assert all(sum(counts) == 3 for counts in digits)
    assert len({tuple(counts) for counts in digits}) > 5
    np.testing.assert_allclose(means["b"], 2 * np.repeat(means["a"], 2, axis=1))


def test_the_same_seed_gives_the_same_draws():
    values = {"a": np.random.default_rng(0).normal(size=(3, 8, 2))}
    draws = [frontier.bootstrap(values, lambda m: float(m.sum()), 20, seed)["a"] for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_interval_is_the_percentile_interval():
    assert frontier.interval(np.arange(1001)) == pytest.approx((25, 975))
    assert frontier.interval(np.arange(1001), level=0.5) == pytest.approx((250, 750))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # The count of hits is about Binomial(200, 0.95): mean 190, standard deviation 3; 175 is five of them below.
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        draws = frontier.bootstrap({"a": random.normal(size=(1, 60, 1))}, lambda m: float(m[0, 0]), 300, seed)["a"]
        low, high = frontier.interval(draws)
        hits += low <= 0 <= high
    assert 175 <= hits <= 200


def test_pairing_narrows_the_interval_of_a_difference():
    # b is a plus 0.1 and a little noise of its own: most of the spread is the prompts' and cancels.
    random = np.random.default_rng(0)
    a = random.normal(size=(1, 50, 1))
    b = a + 0.1 + 0.01 * random.normal(size=a.shape)
    draws = frontier.bootstrap({"a": a, "b": b}, lambda means: float(means.mean()), 500, 0)
    low, high = frontier.interval(draws["b"] - draws["a"])
    assert 0.09 < low < 0.1 < high < 0.11
    low, high = frontier.interval(draws["a"])
    assert high - low > 0.3


@settings(deadline=None, max_examples=20)
@given(points(2), st.integers(2, 6))
def test_without_noise_every_draw_is_the_truth(values, prompts):
    per_prompt = np.repeat(values[:, None, :], prompts, axis=1)
    draws = frontier.bootstrap({"a": per_prompt}, lambda means: frontier.hypervolume(means, [-5, -5]), 10, 0)["a"]
    np.testing.assert_allclose(draws, frontier.hypervolume(values, [-5, -5]), rtol=1e-9)


def test_the_default_size_takes_less_than_two_seconds():
    random = np.random.default_rng(0)
    values = {name: random.normal(size=(11, 96, 2)) for name in ("a", "b")}
    start = time.process_time()
    frontier.bootstrap(values, lambda means: frontier.hypervolume(means, [-3, -3]), 2000, 0)
    assert time.process_time() - start < 2
