"""Metrics of frontiers beside the hypervolume: golden values by hand, definitions as second implementations, properties."""

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_frontier import any_points, points

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier

two_sets = st.integers(2, 3).flatmap(lambda k: st.tuples(points(k), points(k)))


def test_epsilon_is_the_shift_that_the_worst_covered_point_needs():
    # (1, 2) is covered by (2, 1) after a shift of max(1 - 2, 2 - 1) = 1, by (0, 3) after max(1 - 0, 2 - 3) = 1: 1.
    # (3, 0) is covered by (2, 1) after max(3 - 2, 0 - 1) = 1, by (0, 3) after 3: 1. The larger of 1 and 1.
    assert frontier.epsilon_indicator([[2, 1], [0, 3]], [[1, 2], [3, 0]]) == 1
    # everything is exceeded by at least 0.5: there is room to spare
    assert frontier.epsilon_indicator([[2, 2]], [[1.5, 0], [0, 1]]) == -0.5


@given(two_sets)
def test_epsilon_agrees_with_its_definition(sets):
    a, b = sets
    expected = max(min(max(target - point) for point in a) for target in b)
    assert frontier.epsilon_indicator(a, b) == pytest.approx(expected, abs=1e-12)


@given(two_sets)
def test_epsilon_is_moocores(sets):
    a, b = sets
    assert frontier.epsilon_indicator(a, b) == pytest.approx(moocore.epsilon_additive(a, b, maximise=True), abs=1e-12)


@given(st.integers(0, 2**16), st.integers(1, 3))
def test_many_sets_at_once_are_each_set_alone(seed, objectives):
    rng = np.random.default_rng(seed)
    many, others = rng.integers(-2, 3, (4, 5, objectives)), rng.integers(-2, 3, (4, 3, objectives))  # with ties
    w, on = rng.dirichlet(np.ones(objectives), 5), np.array([True, False, True, True, False])
    for metric in (
        frontier.worst_objective,
        lambda p: frontier.expected_utility(w, p),
        lambda p: frontier.mean_inner_product(w, p),
        lambda p: frontier.off_grid_regret(w, p, on),
    ):
        np.testing.assert_allclose(metric(many), [metric(each) for each in many], atol=1e-12)
    for metric in (frontier.dominated_share, frontier.epsilon_indicator):
        np.testing.assert_allclose(metric(many, others), [metric(*pair) for pair in zip(many, others, strict=True)])


@given(two_sets)
def test_igd_plus_agrees_with_its_definition(sets):
    a, target = sets
    short = [min(np.sqrt((np.maximum(goal - point, 0) ** 2).sum()) for point in a) for goal in target]
    assert frontier.igd_plus(a, target) == pytest.approx(np.mean(short), abs=1e-9)


def test_igd_plus_is_the_mean_distance_that_is_lacking():
    # (0, 0) lacks (3, 4), that is 5, and (0, -1) lacks nothing of the second target: (5 + 0) / 2
    assert frontier.igd_plus([[0, 0]], [[3, 4], [-1, -1]]) == 2.5


@given(two_sets)
def test_nothing_is_missing_from_the_union_of_which_a_set_is_all(sets):
    union = frontier.union_frontier(sets)
    assert frontier.igd_plus(np.concatenate(sets), union) == pytest.approx(0, abs=1e-12)
    assert frontier.nondominated(union).all()


def test_expected_utility_takes_the_best_point_and_the_inner_product_the_given_one():
    w, reached = [[1, 0], [0.5, 0.5], [0, 1]], [[2, 0], [0, 0], [0, 2]]
    # best: 2, max(1, 0, 1) = 1, 2 -> 5 / 3; as given: 2, 0, 2 -> 4 / 3
    assert frontier.expected_utility(w, reached) == pytest.approx(5 / 3)
    assert frontier.mean_inner_product(w, reached) == pytest.approx(4 / 3)


@given(any_points, st.integers(0, 2**16))
def test_choosing_the_best_point_is_never_worse_than_the_one_that_was_asked_for(values, seed):
    w = np.random.default_rng(seed).dirichlet(np.ones(values.shape[1]), len(values))
    assert frontier.expected_utility(w, values) >= frontier.mean_inner_product(w, values) - 1e-12


@given(any_points, st.data())
def test_metrics_do_not_depend_on_the_order_of_points(values, data):
    order = data.draw(st.permutations(range(len(values))))
    w = np.eye(values.shape[1])
    for metric in (
        frontier.worst_objective,
        frontier.sparsity,
        lambda p: frontier.expected_utility(w, p),
        lambda p: frontier.igd_plus(p, values + 1),
        lambda p: frontier.epsilon_indicator(p, values + 1),
        lambda p: frontier.epsilon_indicator(values + 1, p),
    ):
        assert metric(values[order]) == pytest.approx(metric(values), abs=1e-9)


def test_off_grid_regret_by_hand():
    w, reached = [[1, 0], [0.25, 0.75], [0.5, 0.5], [0, 1]], [[4, 0], [1, 2], [1, 1], [0, 4]]
    # on the grid: (4, 0), (0, 4). At (.25, .75): best 3, own 1.75, lacks 1.25; at (.5, .5): best 2, own 1, lacks 1; mean 1.125
    assert frontier.off_grid_regret(w, reached, [True, False, False, True]) == 1.125
    # a policy that is ahead of the whole grid there has less than none: best 2, own 3
    assert frontier.off_grid_regret([[1, 0], [0.5, 0.5]], [[4, 0], [3, 3]], [True, False]) == -1


def test_worst_objective_is_the_best_floor():
    # floors 0, 1, -2
    assert frontier.worst_objective([[5, 0], [1, 2], [-2, 9]]) == 1


def test_sparsity_by_hand():
    # (0, 0) is dominated. First objective 1, 2, 4: 1 + 4; second 0, 1, 3: 1 + 4; ten over two gaps.
    assert frontier.sparsity([[1, 3], [2, 1], [4, 0], [0, 0]]) == 5
    assert frontier.sparsity([[1, 3]]) == 0


def test_violations_count_steps_down_between_levels():
    assert frontier.violations([0, 0.5, 1], [1, 2, 3]) == 0
    assert frontier.violations([0, 0.25, 0.5, 0.75, 1], [1, 0, 2, 1, 1]) == 2  # 1 -> 0 and 2 -> 1; 1 -> 1 is no fall
    # two points at weight 0.5 with mean 2: 1, 2, 3 rises
    assert frontier.violations([0, 0.5, 0.5, 1], [1, 4, 0, 3]) == 0


def test_win_rate_counts_prompts_at_equal_weightings():
    # w.(a - b): at (1, 0) 1 and -1; at (0.5, 0.5) 0 and 1. One win, one loss, one tie, one win: 2.5 of 4.
    b = np.zeros((2, 2, 2))
    a = np.array([[[1, -9], [-1, 9]], [[1, -1], [1, 1]]])
    w = np.array([[1, 0], [0.5, 0.5]])
    assert frontier.wins(w, a, b).mean() == 0.625
    assert frontier.wins(w, b, a).mean() == 0.375


@pytest.mark.parametrize(
    "call",
    [
        lambda: frontier.epsilon_indicator(np.zeros((0, 2)), [[0, 0]]),
        lambda: frontier.igd_plus([[0, 0]], np.zeros((0, 2))),
        lambda: frontier.worst_objective(np.zeros((0, 2))),
        lambda: frontier.mean_inner_product([[1, 0]], [[1, 2], [3, 4]]),
        lambda: frontier.violations([0, 1], [1, 2, 3]),
        lambda: frontier.off_grid_regret([[1, 0]], [[1, 2]], [True]),
        lambda: frontier.wins([[1, 0]], np.zeros((1, 2, 2)), np.zeros((1, 3, 2))),
        lambda: frontier.wins([[1, 0]], np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2))),
        lambda: frontier.expected_utility([[1, 0]], [[np.nan, 0]]),
    ],
)
def test_what_cannot_be_measured_is_refused(call):
    with pytest.raises(ClpError):
        call()


def test_attainment_by_hand():
    # run 1 attains (2, 1), run 2 attains (1, 2): both attain (1, 1) only, one of them all that either does
    sets = [np.array([[2.0, 1.0]]), np.array([[1.0, 2.0]])]
    np.testing.assert_allclose(frontier.attainment(sets, 1.0), [[1, 1]])
    best = frontier.attainment(sets, 0.5)
    np.testing.assert_allclose(best[best[:, 0].argsort()], [[1, 2], [2, 1]])
    with pytest.raises(ClpError, match="2 or 3 objectives"):
        frontier.attainment([np.array([[1.0]])], 0.5)
