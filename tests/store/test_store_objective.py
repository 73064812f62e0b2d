"""J in the store, on known truth: by weighting, who is ahead where, regret, frontiers that KL cannot buy."""

import numpy as np
import pandas as pd
import pytest
from results_factory import config, write_results

from clp_lightning.errors import ClpError
from clp_lightning.frontier import hypervolume
from clp_lightning.oracle import exact
from clp_lightning.store.queries import Store, publish
from clp_lightning.store.resampling import Setting
from clp_lightning.store.results import Sampled
from clp_lightning.store.statistics import statistics
from clp_lightning.weightings import lattice

CONFIG = config()
CIRCLE = np.sqrt(np.array([[i / 4, 1 - i / 4] for i in range(5)]))
J_OF_ONE = 0.95 * (CIRCLE**3).sum(-1) - 0.05 * 1.5  # (1 - alpha) w.R - alpha KL at reach 1, see results_factory


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    write_results(folder / "results", CONFIG)
    run = publish(folder / "results", folder / "frontier.duckdb", CONFIG)
    return Store(folder / "frontier.duckdb"), run


def test_j_at_every_weighting_and_what_the_best_method_there_has_more(published):
    store, run = published
    found = store.objective(run)
    of = {method: own for method, own in found.groupby("method")}
    np.testing.assert_allclose(of["clp-full"].j, J_OF_ONE)
    np.testing.assert_allclose(of["rewarded-soups"].j, 0.6 * J_OF_ONE)
    np.testing.assert_allclose(of["reference"].j, 0, atol=1e-12)  # at every weighting, though it takes none
    np.testing.assert_allclose(of["rewarded-soups"].regret, 0.4 * J_OF_ONE)
    np.testing.assert_allclose(of["clp-full"].regret, 0, atol=1e-12)
    assert (found.alpha == 0.05).all() and of["clp-full"].kl.tolist() == [1.5] * 5
    assert (found.j_low < found.j).all() and (found.j < found.j_high).all() and (found.regret_low >= 0).all()


def test_mean_j_regret_and_kl_of_every_method(published):
    store, run = published
    metrics = store.metrics(run).query("target.isna()").set_index(["method", "metric"])
    for method, reach in (("clp-full", 1.0), ("rewarded-soups", 0.6), ("reference", 0.0)):
        assert metrics.value[method, "mean_j"] == pytest.approx(reach * J_OF_ONE.mean(), abs=1e-12)
        assert metrics.low[method, "mean_j"] < metrics.value[method, "mean_j"] < metrics.high[method, "mean_j"]
        assert metrics.value[method, "mean_kl"] == pytest.approx(1.5 * reach)
        assert metrics.value[method, "mean_regret"] == pytest.approx((1 - reach) * J_OF_ONE.mean(), abs=1e-12)
        # above what the reference policy itself reaches, the origin
        assert metrics.value[method, "hypervolume_above_reference"] == pytest.approx(
            hypervolume(reach * CIRCLE, [0, 0]), abs=1e-9
        )
        vectors = 0.95 * reach * CIRCLE - 0.05 * 1.5 * reach
        for name, point in (("regularized_hypervolume", [-3, -3]), ("regularized_hypervolume_above_reference", [0, 0])):
            assert metrics.value[method, name] == pytest.approx(hypervolume(vectors, point), abs=1e-9)


def test_who_is_ahead_where(published):
    store, run = published
    found = store.by_weighting(run).query("method_a == 'clp-full' and method_b == 'rewarded-soups'")
    np.testing.assert_allclose(found.difference, 0.4 * J_OF_ONE)
    assert found["w:informativeness"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert ((found.from_ < found.difference) & (found.difference < found.to_)).all() and (found.probability > 0.5).all()
    pairs = store.comparisons(run).set_index(["method_a", "method_b", "statistic"])
    pair = pairs.loc["clp-full", "rewarded-soups", "mean_j"]
    assert pair.difference == pytest.approx(0.4 * J_OF_ONE.mean()) and pair.low < pair.difference < pair.high
    assert pairs.difference["clp-full", "rewarded-soups", "mean_kl"] == pytest.approx(0.6)


def test_regularized_points_are_shaped_like_those_of_the_rewards(published):
    store, run = published
    plain, own = store.points(run), store.points(run, regularized=True)
    assert list(plain) == list(own) and len(plain) == len(own)
    one = own[own.method == "clp-full"]
    names = [f"reward:{name}" for name in CONFIG.objectives]
    np.testing.assert_allclose(one[names], 0.95 * CIRCLE - 0.075)
    assert (one[[f"low:{name}" for name in CONFIG.objectives]].to_numpy() < one[names].to_numpy()).all()


def sampled(method: str, weightings: np.ndarray | None, rewards: np.ndarray, kl: np.ndarray) -> Sampled:
    """Means [N, K] and [N] as answers to six prompts whose noise sums to zero."""
    noise = np.array([-1, 1, -1, 1, -1, 1]) * 0.01
    return Sampled(method, weightings, rewards[:, None] + noise[:, None], np.repeat(kl[:, None], 6, axis=1))


def measured(
    found: list[Sampled], alpha: float, groups: tuple[str, ...] | None = tuple("aabbcc")
) -> dict[str, pd.DataFrame]:
    names = tuple("xyz"[: found[0].rewards.shape[-1]])
    return statistics(found, Setting(names, [-3.0] * len(names), 100, 0, alpha, groups, 11))


def test_exact_policies_of_the_oracle_have_their_exact_value():
    """The store's mean J of optimal policies is the optimum's closed form: alpha log E_ref exp((1 - alpha) / alpha w.R)."""
    rng, w, alpha = np.random.default_rng(0), lattice(2, 6), 0.1
    ref = np.log(rng.dirichlet(np.ones(32), size=6))
    problem = exact.Problem(ref, rng.normal(size=(6, 32, 2)), alpha)
    best = exact.optimum(problem, w)
    rewards = np.einsum("wpn,pnk->wpk", np.exp(best), problem.rewards)
    kl = (np.exp(best) * (best - ref)).sum(-1)
    plain = np.einsum("pn,pnk->pk", np.exp(ref), problem.rewards)[None]
    found = [Sampled("reference", None, plain, np.zeros((1, 6))), Sampled("optimum", w, rewards, kl)]
    frames = measured(found, alpha)
    tilted = np.einsum("wk,pnk->wpn", w, problem.rewards) * (1 - alpha) / alpha
    truth = alpha * np.log((np.exp(ref) * np.exp(tilted)).sum(-1)).mean(-1)
    own = frames["objective"].query("method == 'optimum'")
    np.testing.assert_allclose(own.j, truth, atol=1e-6)
    value = frames["metrics"].query("method == 'optimum' and metric == 'mean_j'").value.item()
    assert value == pytest.approx(truth.mean(), abs=1e-6)
    assert (own.regret == 0).all()


def test_a_frontier_that_is_bought_with_kl_leads_in_rewards_and_not_in_j():
    w = lattice(2, 5)
    circle = np.sqrt(w)
    found = [
        sampled("reference", None, np.zeros((1, 2)), np.zeros(1)),
        sampled("honest", w, circle, np.full(5, 1.0)),
        sampled("bought", w, 1.2 * circle, np.full(5, 9.0)),
    ]
    frames = measured(found, 0.1)
    pair = frames["comparisons"].query("method_a == 'honest' and method_b == 'bought'").set_index("statistic")
    assert pair.high["hypervolume"] < 0 and pair.difference["mean_kl"] == -8
    # J differs by 0.9 (1 - 1.2) |w|^1.5 + 0.1 * 8, at least 0.62 everywhere
    for name in ("mean_j", "regularized_hypervolume", "regularized_hypervolume_above_reference"):
        assert pair.low[name] > 0, name
    assert pair.low["mean_j"] > 0.62 - 0.01
    assert pair.difference["dominated_share"] == -1 and pair.difference["regularized_dominated_share"] == 1
    assert (frames["by_weighting"].query("method_a == 'honest' and method_b == 'bought'").low > 0.6).all()


def test_methods_at_other_weightings_are_compared_where_both_are():
    w = lattice(2, 5)
    found = [
        sampled("reference", None, np.zeros((1, 2)), np.zeros(1)),
        sampled("all", w, np.sqrt(w), np.zeros(5)),
        sampled("ends", w[[0, 4]], 2 * w[[0, 4]], np.zeros(2)),
        sampled("between", w[[2]] + [[0.1, -0.1]], np.ones((1, 2)), np.zeros(1)),
    ]
    frames = measured(found, 0.0)
    pairs = frames["comparisons"].query("statistic == 'mean_j'").set_index(["method_a", "method_b"]).difference
    assert pairs["all", "ends"] == pytest.approx(-1)  # 1 against 2 at both ends
    assert ("all", "between") not in pairs.index  # no weighting in common
    lost = frames["objective"].set_index(["method", "weighting_id"]).regret
    assert lost["all"].tolist() == pytest.approx([1, 0, 0, 0, 1])
    assert lost["between"].tolist() == [0]
    assert (frames["objective"].method == "reference").sum() == 6


def test_where_weightings_are_kl_strengths_each_has_its_own():
    strengths = np.array([0.5, 0.2])
    w = 1 - strengths[:, None]
    found = [
        sampled("reference", None, np.array([[0.5]]), np.zeros(1)),
        sampled("steered", w, np.array([[1.0], [2.0]]), np.array([0.4, 3.0])),
    ]
    frames = measured(found, 0.2)
    own = frames["objective"].query("method == 'steered'")
    assert own.alpha.tolist() == pytest.approx([0.5, 0.2])
    assert own.j.tolist() == pytest.approx([0.5 * 1 - 0.5 * 0.4, 0.8 * 2 - 0.2 * 3])
    reference = frames["objective"].query("method == 'reference'")
    # in ascending order of the weightings, 0.5 and 0.8
    assert reference.j.tolist() == pytest.approx([0.25, 0.4])
    assert frames["regularized"].empty and not frames["metrics"].metric.str.startswith("regularized").any()


def test_a_run_of_the_reference_policy_alone_has_no_j():
    frames = measured([sampled("reference", None, np.zeros((1, 2)), np.zeros(1))], 0.05)
    assert frames["objective"].empty and "mean_j" not in set(frames["metrics"].metric)


def test_groups_widen_the_interval_and_one_group_is_refused():
    w = lattice(2, 5)
    shift = np.repeat([0.3, -0.3, 0.0], 2)[None, :, None]  # what the prompts of a group have in common
    found = [sampled("reference", None, np.zeros((1, 2)), np.zeros(1)), sampled("all", w, np.sqrt(w), np.zeros(5))]
    found = [each._replace(rewards=each.rewards + shift) for each in found]
    width = {}
    for name, groups in (("known", tuple("aabbcc")), ("not known", None)):
        row = measured(found, 0.05, groups)["metrics"].query("method == 'all' and metric == 'mean_j'").iloc[0]
        width[name] = row.high - row.low
    assert width["known"] > 1.5 * width["not known"]
    with pytest.raises(ClpError, match=r"all 6 prompts are of one group \(a\)"):
        measured(found, 0.05, tuple("aaaaaa"))
