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
    full = result["methods"]["clp-full"]["hypervolume"]
    assert full.value == pytest.approx(expected)
    assert full.low < full.value < full.high
    ahead = result["differences"]["clp-full", "rewarded-soups"]["hypervolume"]
    assert ahead.value == pytest.approx(expected - frontier.hypervolume(0.6 * circle, [-3, -3]))
    assert 0.5 < ahead.probability <= 1
    alone = [frontier.hypervolume(reach * circle, [-3, -3]) for reach in (1.0, 1.1, 1.2)]
    order = [run["training_seed"] for run in found]
    assert result["each"]["clp-full"]["hypervolume"] == pytest.approx([alone[seed] for seed in order])
    # J at w is 0.95 reach (w^1.5 + (1 - w)^1.5) - 0.05 * 1.5 reach: of a mean reach of 1.1 against 0.6
    j_of_one = np.mean(0.95 * (circle**3).sum(-1) - 0.075)
    assert result["methods"]["clp-full"]["mean_j"].value == pytest.approx(1.1 * j_of_one)
    ahead = result["differences"]["clp-full", "rewarded-soups"]["mean_j"]
    assert ahead.value == pytest.approx(0.5 * j_of_one) and ahead.low < ahead.value < ahead.high
    assert result["methods"]["reference"]["mean_j"].value == pytest.approx(0, abs=1e-12)
    assert result["methods"]["clp-full"]["mean_kl"].value == pytest.approx(1.65)
    pair = runs.over_seeds(store, found, ["rewarded-soups", "clp-full"])
    assert set(pair["differences"]) == {("clp-full", "rewarded-soups")}
    assert pair["differences"]["clp-full", "rewarded-soups"]["mean_j"].value == pytest.approx(ahead.value)
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


def test_runs_that_were_computed_otherwise_are_neither_pooled_nor_compared(tmp_path):
    for seed, where in enumerate(("float32, cpu, 2 threads", "float32, cpu, 2 threads", "bfloat16, cuda, 8 threads")):
        write_results(tmp_path / "results", with_seed(seed))
        for path in (tmp_path / "results").glob("*/summary.json"):
            path.write_text(path.read_text().replace("float32, cpu, 2 threads", where))
        publish(tmp_path / "results", tmp_path / "f.duckdb", with_seed(seed))
    store = Store(tmp_path / "f.duckdb")
    by_seed = {run["training_seed"]: run["run_id"] for run in store.each_run()}
    assert {run["training_seed"] for run in runs.siblings(store, by_seed[0])} == {0, 1}
    (line,) = runs.left_out(store, by_seed[0])
    assert line.startswith(f"run {by_seed[2]} is left out: it has another precision, device or number of threads (")
    assert "evaluated on bfloat16, cuda, 8 threads, not float32, cpu, 2 threads" in line and "\n" not in line
    assert "clp-full trained on bfloat16, cuda, 8 threads, not float32, cpu, 2 threads" in line
    with pytest.raises(ClpError, match=r"cannot be compared: .* another precision, device or number of threads"):
        runs.comparable(store, by_seed[0], by_seed[2])
    # what an older version computed on is not known: no obstacle
    unknown = store.run(by_seed[0]) | {"computed_on": None}
    assert runs.obstacles(unknown, store.run(by_seed[2])) == []


def test_prompts_drawn_otherwise_are_other_prompts(store):
    one = store.run()
    other = one | {"params": one["params"] | {"evaluation": {"draw": "random"}}}
    assert runs.obstacles(one, other) == ["test prompts drawn in another way (evaluation.draw, evaluation.group)"]
    before = one | {"params": {"evaluation": {}}}  # a version that knew one way to draw
    assert runs.obstacles(before, other) == []


def test_two_runs_method_by_method(store):
    by_seed = {run["training_seed"]: run["run_id"] for run in store.each_run()}
    result = runs.against(store, by_seed[2], by_seed[0])
    rows = {row["method"]: row["measures"] for row in result["methods"]}
    circle = np.sqrt(np.array([[i / 4, 1 - i / 4] for i in range(5)]))
    j_of_one = np.mean(0.95 * (circle**3).sum(-1) - 0.075)
    full = rows["clp-full"]["mean_j"]
    assert (full["value"], full["against"]) == pytest.approx((1.2 * j_of_one, j_of_one))
    assert full["difference"] == pytest.approx(0.2 * j_of_one)
    assert full["interval"][0] < full["difference"] < full["interval"][1]
    assert rows["clp-full"]["mean_kl"]["difference"] == pytest.approx(0.3)
    assert rows["reference"]["mean_j"]["value"] == pytest.approx(0, abs=1e-12)
