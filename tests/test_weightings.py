import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clp_lightning import weightings
from clp_lightning.errors import UsageError

NAMES = ("a", "b")


def test_parse_fills_what_is_left_out_with_zero():
    assert weightings.parse("b=1", NAMES).tolist() == [0.0, 1.0]
    assert weightings.parse(" a = 0.3 , b=0.7", NAMES).tolist() == [0.3, 0.7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=0.5,b=0.6", "entries sum to 1.1, not 1"),
        ("a=-0.5,b=1.5", "a=-0.5 must be a number >= 0"),
        ("a=nan,b=1", "a=nan must be a number >= 0"),
        ("c=1", "unknown objective 'c'; this model knows a, b"),
        ("a", "cannot read 'a'"),
        ("a=x", "cannot read 'a=x'"),
        ("a=0.5,a=0.5", "a is given twice"),
        ("", "entries sum to 0, not 1"),
    ],
)
def test_bad_weightings_name_the_problem_in_one_line(text, message):
    with pytest.raises(UsageError) as error:
        weightings.parse(text, NAMES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lattice_of_two_runs_from_one_vertex_to_the_other():
    assert weightings.lattice(2, 3).tolist() == [[0, 1], [0.5, 0.5], [1, 0]]


def test_rotations_golden():
    moved = weightings.rotations(np.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2]]))
    assert moved.tolist() == [
        [[1, 0, 0], [0.5, 0.3, 0.2]], [[0, 1, 0], [0.2, 0.5, 0.3]], [[0, 0, 1], [0.3, 0.2, 0.5]]
    ]  # fmt: skip


@given(st.integers(1, 4), st.integers(2, 6))
def test_lattice_has_the_number_of_compositions(objectives, points):
    from math import comb

    grid = weightings.lattice(objectives, points)
    # ways to write (points - 1) as an ordered sum of K parts >= 0: C(points - 1 + K - 1, K - 1)
    assert len(grid) == len(np.unique(grid, axis=0)) == comb(points + objectives - 2, objectives - 1)
    np.testing.assert_allclose(grid.sum(1), 1)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 6), st.integers(0, 99))
def test_a_grid_holds_the_lattice_and_what_is_drawn_beside_it(objectives, points, off_grid, seed):
    grid = weightings.grid(objectives, points, off_grid=off_grid, seed=seed)
    lattice = weightings.lattice(objectives, points)
    on = weightings.on_lattice(grid, points)
    np.testing.assert_array_equal(grid[on], lattice)
    # one objective has a single weighting, which is on the lattice
    assert len(grid) == len(lattice) + (off_grid if objectives > 1 else 0)
    np.testing.assert_allclose(grid.sum(1), 1)
    assert grid.tolist() == sorted(grid.tolist())


@given(st.integers(0, 1000), st.floats(0.05, 5), st.integers(1, 5))
def test_dirichlet_draws_lie_on_the_simplex(seed, concentration, objectives):
    drawn = weightings.dirichlet(np.random.default_rng(seed), 7, objectives, concentration=concentration)
    assert drawn.shape == (7, objectives)
    assert (drawn >= 0).all()
    np.testing.assert_allclose(drawn.sum(1), 1)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 9))
def test_antithetic_draws_give_every_objective_the_same_weight(seed, objectives, count):
    rng = np.random.default_rng(seed)
    base = weightings.dirichlet(rng, -(-count // objectives), objectives, concentration=0.4)
    drawn = weightings.antithetic(rng, count, base)
    assert drawn.shape == (count, objectives)
    assert {tuple(sorted(row)) for row in drawn} <= {tuple(sorted(row)) for row in base}
    if count % objectives == 0:
        np.testing.assert_allclose(drawn.mean(0), 1 / objectives)


def test_vertices_come_in_equal_shares():
    drawn = weightings.vertices(np.random.default_rng(0), 8, 2)
    assert drawn.sum(0).tolist() == [4, 4]
    assert set(map(tuple, drawn)) == {(1, 0), (0, 1)}


@pytest.mark.parametrize("concentration", [0.2, 0.4, 1.0, 5.0])
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_smoothed_vertices_are_the_second_moments_of_the_dirichlet(objectives, concentration):
    rows = weightings.smoothed_vertices(objectives, concentration=concentration)
    drawn = weightings.dirichlet(np.random.default_rng(0), 400_000, objectives, concentration=concentration)
    moments = drawn.T @ drawn / len(drawn)
    np.testing.assert_allclose(rows, moments / moments.sum(1, keepdims=True), atol=4e-3)


def test_backbones_golden():
    np.testing.assert_allclose(weightings.backbones(2, beta=0.7), [[0.7, 0.3], [0.3, 0.7]])
    np.testing.assert_allclose(weightings.backbones(3, beta=0.6)[1], [0.2, 0.6, 0.2])
    np.testing.assert_allclose(weightings.backbones(4, beta=1.0), np.eye(4))


def test_describe_and_parse_are_inverse():
    assert weightings.parse(weightings.describe([0.25, 0.75], NAMES), NAMES).tolist() == [0.25, 0.75]
