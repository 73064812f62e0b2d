"""Frontier statistics: golden values by hand, properties, a second implementation of each."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier


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


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_agrees_with_inclusion_exclusion_on_500_random_sets(objectives):
    random = np.random.default_rng(objectives)
    for _ in range(500):
        values = random.normal(size=(random.integers(1, 8), objectives)).round(1)  # rounding makes ties
        expected = hypervolume_by_inclusion_exclusion(values, np.full(objectives, -1.0))
        assert frontier.hypervolume(values, np.full(objectives, -1.0)) == pytest.approx(expected, abs=1e-8)


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
    ):
        with pytest.raises(ClpError, match="finite"):
            call()


def test_shapes_that_disagree_are_rejected():
    with pytest.raises(ClpError, match="2 objectives, the reference point has 3"):
        frontier.hypervolume([[1, 1]], [0, 0, 0])
