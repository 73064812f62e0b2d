"""Clusters of prompts and training seeds: by hand, against general formulas, and how often intervals hold the truth."""

import numpy as np
import pytest

from bench.coverage import GROUPS, SPREADS, share_of_hits
from clp_lightning.errors import ClpError
from clp_lightning.frontier import Bootstrap, cluster_bootstrap, hierarchical, intraclass_correlation
from clp_lightning.frontier.clusters import design


def test_a_cluster_is_drawn_with_all_of_its_prompts():
    # Prompts 1, 10 and 100, of which the last two are one service: a version holds them together or not at all.
    bootstrap = Bootstrap(3, 100, 0, clusters=["a", "b", "b"])
    means = bootstrap.averages(np.array([[1.0, 10.0, 100.0]]))[0]
    assert means[0] == pytest.approx(37)
    # both services once (37), a twice (1), b twice (55)
    assert {round(float(mean), 9) for mean in means[1:]} == {37.0, 1.0, 55.0}


def test_prompts_without_clusters_are_clusters_of_their_own():
    values = np.random.default_rng(0).normal(size=(2, 9))
    one, other = Bootstrap(9, 50, 1), Bootstrap(9, 50, 1, clusters=list("abcdefghi"), correlation=0.5)
    np.testing.assert_array_equal(one.averages(values), other.averages(values))
    assert one.design == other.design == (1 - 1 / 9, 8)


@pytest.mark.parametrize("correlation", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 2, 9), (12, 12, 11, 2, 1, 1)])
def test_the_design_is_that_of_the_quadratic_form(sizes, correlation):
    """Bell & McCaffrey 2002 with whole matrices: trace and trace of the square of form times covariance."""
    n = np.array(sizes, dtype=float)
    u = n / n.sum()
    residuals = np.eye(len(n)) - np.outer(np.ones(len(n)), u)
    product = residuals.T @ np.diag(u**2) @ residuals @ np.diag(correlation + (1 - correlation) / n)
    truth = (u**2 * (correlation + (1 - correlation) / n)).sum()
    share, freedom = design(n, correlation)
    assert share == pytest.approx(np.trace(product) / truth)
    assert freedom == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))


def test_the_correlation_within_clusters_by_hand():
    # two clusters, (0, 2) and (4, 6): within mean square (1+1+1+1) / (4 - 2) = 2, between 2 (4 + 4) / 1 = 16, n0 = 2,
    # own variance (16 - 2) / 2 = 7, so 7 / (7 + 2)
    assert intraclass_correlation([0, 2, 4, 6], ["a", "a", "b", "b"]) == pytest.approx(7 / 9)
    # the same of every row: the mean squares add up
    assert intraclass_correlation([[0, 2, 4, 6]] * 3, ["a", "a", "b", "b"]) == pytest.approx(7 / 9)
    assert intraclass_correlation([0, 6, 0, 6], ["a", "a", "b", "b"]) == 0
    assert intraclass_correlation([1, 2, 3], ["a", "b", "c"]) == 0


def test_the_interval_over_seeds_by_hand():
    # Two seeds with 1 and 3: mean 2, variance 2, over two seeds 1. Resamples do not vary: the prompts add nothing,
    # so t has one degree of freedom: 12.706 at 97.5 %.
    bootstrap = Bootstrap(10, 2, 0)
    estimate = hierarchical([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]], bootstrap)
    assert estimate.value == 2
    assert estimate.high - estimate.value == pytest.approx(12.7062, abs=1e-3)
    # t(1) is Cauchy: P = 1/2 + arctan(2 / 1) / pi
    assert estimate.probability == pytest.approx(0.5 + np.arctan(2) / np.pi)
    # Seeds that agree, draws 1 and 3 for both: the covariance is 2, of which resamples of ten prompts show 9 / 10, and t has
    # nine degrees of freedom: 2.2622 at 97.5 %.
    estimate = hierarchical([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0]], bootstrap)
    assert estimate.high - estimate.value == pytest.approx(2.26216 * np.sqrt(2 / 0.9), rel=1e-4)


def test_one_seed_has_the_interval_of_its_bootstrap():
    values = np.random.default_rng(1).normal(size=(1, 12))
    bootstrap = cluster_bootstrap(values, list("aaaabbbbbccd"), 500)
    drawn = bootstrap.averages(values)
    assert hierarchical(drawn, bootstrap)[1:3] == pytest.approx(bootstrap.interval(drawn[0]))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("spread", SPREADS)
def test_intervals_over_seeds_and_clusters_cover_the_truth(spread, groups, seeds):
    """Binomial(4000, 0.95) has a standard deviation of 0.34 %; the bar of 93 to 97 % is the study's own."""
    assert 0.93 <= share_of_hits(SPREADS[spread], GROUPS[groups], seeds, trials=4000, draws=200) <= 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bootstrap(3, 10, 0, clusters=["a", "a", "a"]), r"all 3 prompts are of one group \(a\)"),
        (lambda: Bootstrap(3, 10, 0, clusters=["a", "b"]), r"a cluster for each of 3 prompts, not \[2\]"),
        (lambda: intraclass_correlation(np.zeros(3), ["a", "b"]), "3 prompts, 2 groups"),
        (lambda: hierarchical(np.zeros((2, 5)), Bootstrap(3, 10, 0)), r"\[seeds, 11\], not \[2, 5\]"),
        (lambda: hierarchical(np.full((1, 11), np.nan), Bootstrap(3, 10, 0)), "finite"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ClpError, match=message):
        call()
