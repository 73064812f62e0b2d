"""Comparisons between runs: what is refused, and intervals over training seeds on known truth."""

import numpy as np
import pytest
from results_factory import config, write_results

from clp_lightning.errors import ClpError
from clp_lightning.frontier import metrics as frontier
from clp_lightning.store import runs
from clp_lightning.store.queries import Store, publish


def with_seed(seed: int):
    values = config().model_dump()
    return config(training=values["training"] | {"seed": seed})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three runs that differ in their training seed only."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, reach in enumerate((1.0, 1.1, 1.2)):
        write_results(
            folder / "results", with_seed(seed), reach={"clp-full": reach, "rewarded-soups": 0.6}, seed=10 * seed
        )
        publish(folder / "results", folder / "frontier.duckdb", with_seed(seed))
    return Store(folder / "frontier.duckdb")


def test_runs_that_differ_in_the_training_seed_only_belong_together(store):
    found = runs.siblings(store)
    assert sorted(run["training_seed"] for run in found) == [0, 1, 2]
    result = runs.over_seeds(store, found)
    circle = np.sqrt(np.array([[i / 4, 1 - i / 4] for i in range(5)]))
    expected = np.mean([frontier.hypervolume(reach * circle, [-3, -3]) for reach in (1.0, 1.1, 1.2)])
    full = result["methods"]["clp-full"]
    assert full.value == pytest.approx(expected)
    assert full.low < full.value < full.high
    ahead = result["differences"]["clp-full", "rewarded-soups"]
    assert ahead.value == pytest.approx(expected - frontier.hypervolume(0.6 * circle, [-3, -3]))
    assert 0.5 < ahead.probability <= 1
    alone = [frontier.hypervolume(reach * circle, [-3, -3]) for reach in (1.0, 1.1, 1.2)]
    assert result["each"]["clp-full"] == pytest.approx([alone[run["training_seed"]] for run in found])
    pair = runs.over_seeds(store, found, ["rewarded-soups", "clp-full"])
    assert pair["differences"] == {("clp-full", "rewarded-soups"): ahead}
    assert set(pair["attainment"]) == set(pair["methods"]) == {"clp-full", "rewarded-soups"}
    # circles of radius 1, 1.1 and 1.2: all runs attain the innermost, half of them the one between
    for share, reach in ((1.0, 1.0), (0.5, 1.1)):
        surface = result["attainment"]["clp-full"][share]
        assert frontier.hypervolume(surface, [-3, -3]) == pytest.approx(frontier.hypervolume(reach * circle, [-3, -3]))


def test_runs_on_other_axes_are_refused_with_the_reason(store, tmp_path):
    one = store.run()
    assert runs.obstacles(one, one) == []
    other = one | {"normalization": {}, "corpus_hash": "x"}
    assert runs.obstacles(one, other) == ["another normalization of the rewards", "another corpus"]
    folder = tmp_path
    write_results(folder / "results", config())
    first = publish(folder / "results", folder / "f.duckdb", config())
    moved = config(evaluation=config().evaluation.model_dump() | {"reference_point": -2.0})
    second = publish(folder / "results", folder / "f.duckdb", moved)
    with pytest.raises(
        ClpError, match=f"runs {first} and {second} cannot be compared: {second} has another reference point"
    ):
        runs.comparable(Store(folder / "f.duckdb"), first, second)
