"""The paired bootstrap: what a resample is, that intervals cover what they promise, and scipy as a second implementation."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_frontier import points

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.frontier.bootstrap import Bootstrap


def test_versions_are_all_prompts_once_and_then_draws():
    # Prompt p has the reward 10**p, so that a mean times the number of prompts spells the counts of the prompts as digits.
    values = np.array([[[1.0], [10.0], [100.0]]])
    bootstrap = Bootstrap(3, 50, 0)
    means = bootstrap.means(values)
    assert means[0, 0, 0] == pytest.approx(111 / 3)
    digits = [[int(digit) for digit in f"{round(float(mean) * 3):03d}"] for mean in means[1:, 0, 0]]
    assert len(digits) == 50 and all(sum(counts) == 3 for counts in digits)
    assert len({tuple(counts) for counts in digits}) > 5
    twice = bootstrap.means(2 * np.concatenate([values, values]))  # the same resamples for another method
    np.testing.assert_allclose(twice, 2 * np.repeat(means, 2, axis=1))


def test_the_same_seed_gives_the_same_draws():
    values = np.random.default_rng(0).normal(size=(3, 8, 2))
    first, again, other = (Bootstrap(8, 20, seed).means(values) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_interval_of_a_mean_is_students():
    # For a mean the bootstrap error is s sqrt((n - 1) / n) / sqrt(n), so with the factor sqrt(n / (n - 1)) the interval is
    # the textbook's, mean -+ t s / sqrt(n). 20,000 draws leave half a percent of its width to chance.
    values = np.random.default_rng(3).exponential(size=25)
    bootstrap = Bootstrap(25, 20_000, 0)
    own = bootstrap.interval(bootstrap.means(values[None, :, None])[:, 0, 0])
    theirs = stats.t.interval(0.95, 24, loc=values.mean(), scale=values.std(ddof=1) / 5)
    assert own == pytest.approx(theirs, abs=0.02 * (theirs[1] - theirs[0]))


def test_percentiles_agree_with_scipy():
    values = np.random.default_rng(3).exponential(size=25)
    bootstrap = Bootstrap(25, 20_000, 0)
    own = bootstrap.percentiles(bootstrap.means(values[None, :, None])[:, 0, 0])
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert own == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


W = np.stack([np.linspace(0, 1, 6), np.linspace(1, 0, 6)], axis=1)
STATISTICS = {
    "hypervolume": lambda points: frontier.hypervolume(points, [-3, -3]),
    "inner product": lambda points: frontier.mean_inner_product(W, points),
}


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [48, 128])
def test_intervals_cover_the_truth_as_often_as_they_say(prompts):
    """Two quarter circles of known radius with noise that both methods share in part, 2,000 times.

    The count of hits at 95 % is Binomial(2000, 0.95): standard deviation 0.5 %. The bar is 93 to 97 %.
    """
    random = np.random.default_rng(prompts)
    truth = {method: reach * np.sqrt(W) for method, reach in (("a", 1.0), ("b", 0.8))}
    hits = dict.fromkeys([*(f"{name} of a" for name in STATISTICS), *(f"{name}, a - b" for name in STATISTICS)], 0)
    for seed in range(2000):
        common = random.normal(size=(1, prompts, 2)) * 0.7
        bootstrap = Bootstrap(prompts, 200, seed)
        means = {
            method: bootstrap.means(centre[:, None] + common + random.normal(size=(6, prompts, 2)) * 0.7)
            for method, centre in truth.items()
        }
        for name, statistic in STATISTICS.items():
            a, b = (np.array([statistic(p) for p in means[method]]) for method in ("a", "b"))
            true_a, true_b = (statistic(truth[method]) for method in ("a", "b"))
            for what, values, true in ((f"{name} of a", a, true_a), (f"{name}, a - b", a - b, true_a - true_b)):
                low, high = bootstrap.interval(values)
                hits[what] += low <= true <= high
    shares = {what: count / 2000 for what, count in hits.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_a_mean_is_covered_about_as_often_as_promised():
    # Binomial(300, 0.95): mean 285, standard deviation 3.8; 268 is more than four of them below.
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        bootstrap = Bootstrap(30, 300, seed)
        low, high = bootstrap.interval(bootstrap.means(random.exponential(size=(1, 30, 1)))[:, 0, 0])
        hits += low <= 1 <= high
    assert 268 <= hits <= 300


def test_pairing_narrows_the_interval_of_a_difference():
    # b is a plus 0.1 and a little noise of its own: most of the spread is the prompts' and cancels.
    random = np.random.default_rng(0)
    a = random.normal(size=(1, 50, 1))
    b = a + 0.1 + 0.01 * random.normal(size=a.shape)
    bootstrap = Bootstrap(50, 500, 0)
    of_a, of_b = (bootstrap.means(values)[:, 0, 0] for values in (a, b))
    low, high = bootstrap.interval(of_b - of_a)
    assert 0.09 < low < 0.1 < high < 0.11
    low, high = bootstrap.interval(of_a)
    assert high - low > 0.3
    assert bootstrap.probability(of_b - of_a) == 1
    assert bootstrap.probability(of_a - of_a) == 0.5


@settings(deadline=None, max_examples=20)
@given(points(2), st.integers(2, 6))
def test_without_noise_every_version_is_the_truth(values, prompts):
    per_prompt = np.repeat(values[:, None, :], prompts, axis=1)
    bootstrap = Bootstrap(prompts, 10, 0)
    volumes = [frontier.hypervolume(means, [-5, -5]) for means in bootstrap.means(per_prompt)]
    truth = frontier.hypervolume(values, [-5, -5])
    np.testing.assert_allclose(volumes, truth, rtol=1e-9)
    assert bootstrap.interval(volumes) == pytest.approx((truth, truth), rel=1e-9)
    assert bootstrap.percentiles(volumes) == pytest.approx((truth, truth), rel=1e-9)


def test_the_default_size_takes_less_than_two_seconds():
    random = np.random.default_rng(0)
    start = time.process_time()
    bootstrap = Bootstrap(96, 2000, 0)
    for _ in range(2):
        for means in bootstrap.means(random.normal(size=(11, 96, 2))):
            frontier.hypervolume(means, [-3, -3])
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bootstrap(1, 10, 0), "at least 2 prompts"),
        (lambda: Bootstrap(3, 10, 0).means(np.zeros((2, 4, 2))), "same prompts"),
        (lambda: Bootstrap(3, 10, 0).means(np.full((2, 3, 2), np.nan)), "finite"),
        (lambda: Bootstrap(3, 10, 0).interval([0.0, 1.0]), "per version"),
        (lambda: Bootstrap(3, 2, 0).interval([0, 1, np.nan]), "finite"),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, message):
    with pytest.raises(ClpError, match=message):
        call()
