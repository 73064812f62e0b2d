"""What a study says of its runs: means by hand, who is ahead where, catching up, and what is not compared."""

import json

import numpy as np
import pytest
from test_study_table import AXES, GRID, run_rows, written

from clp_lightning.errors import ClpError
from clp_lightning.frontier.bootstrap import cluster_bootstrap
from clp_lightning.frontier.seeds import hierarchical
from clp_lightning.study.comparison import compare, report
from clp_lightning.study.definition import Study
from clp_lightning.study.runs import Run
from clp_lightning.study.table import read

VALUES = {
    "question": "who is ahead", "split": "test", "seeds": [3, 4], "budgets": [1, 3], "panels": {"two": {"recipe": "default"}},
    "arms": {"clp-full": {"method": "clp-full"}, "soups": {"method": "rewarded-soups"}, "morlhf": {"method": "morlhf"}},
}  # fmt: skip
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(3, 4)).round(2)


class Planned(Run):
    """A run of a configuration that is not looked at: its hash is what the rows have."""

    config_hash = "c" * 12  # type: ignore[assignment]


def compared(path, study=None, **options):
    study = Study.model_validate(study or VALUES)
    runs = [
        Planned("s", "two", "default", arm, arm, seed, budget, "test", "", None)  # type: ignore[arg-type]
        for budget in study.budgets for arm in study.arms for seed in study.seeds
    ]  # fmt: skip
    return compare(study, runs, read(path), path, **options)


def flat(arm, seed, budget, j, shift=(0, 0, 0)):
    """A run with mean J `j`, plus `shift` by weighting, and noise over prompts that all runs share."""
    return run_rows(arm, seed, budget, values=np.round(j + np.array(shift)[:, None] + NOISE - NOISE.mean(), 3))


def lines(result):
    return {(line["arm"], line["budget"]): line for line in result["panels"][0]["rows"]}


def test_means_and_differences_by_hand(tmp_path):
    path = written(
        tmp_path,
        flat("clp-full", 3, 1, 0.5), flat("clp-full", 4, 1, 0.6),
        flat("soups", 3, 1, 0.4, (0.3, 0, -0.3)), flat("soups", 4, 1, 0.3, (0.3, 0, -0.3)),
    )  # fmt: skip
    found = lines(compared(path))
    assert found["clp-full", 1]["mean_j"]["value"] == pytest.approx(0.55, abs=2e-3)
    assert found["clp-full", 1]["seeds"] == [3, 4] and "against" not in found["clp-full", 1]
    against = found["soups", 1]["against"]
    # by seed 0.1 and 0.3, the noise is paired away: mean 0.2, and its interval is Student's with one degree of freedom
    assert against["value"] == pytest.approx(0.2, abs=2e-3)
    half = 12.706 * (0.2 / np.sqrt(2)) / np.sqrt(2)
    assert against["high"] - against["value"] == pytest.approx(half, rel=0.02)
    assert against["furthest_behind"]["weighting"] == [0.0, 1.0]
    assert against["furthest_behind"]["value"] == pytest.approx(0.2 - 0.3, abs=2e-3)
    assert [point["weighting"] for point in against["points"]] == GRID
    # the same as frontier's own functions on the same numbers
    table, values = read(path), []
    for seed in (3, 4):
        of = [np.array([p["by_prompt"] for p in table.points[f"{arm}-{seed}-1"]]) for arm in ("clp-full", "soups")]
        values.append((of[0] - of[1]).mean(0))
    bootstrap = cluster_bootstrap(np.stack(values), [group for _, group in AXES["prompts"]], 2000, 0)
    estimate = hierarchical(bootstrap.averages(np.stack(values)), bootstrap)
    assert (against["low"], against["high"]) == (estimate.low, estimate.high)


def test_who_is_ahead_where_counts_intervals_that_exclude_zero(tmp_path):
    path = written(
        tmp_path,
        flat("clp-full", 3, 1, 0.5), flat("clp-full", 4, 1, 0.5),
        flat("soups", 3, 1, 0.5, (0.3, 0, -0.3)), flat("soups", 4, 1, 0.5, (0.302, 0, -0.302)),
    )  # fmt: skip
    against = lines(compared(path))["soups", 1]["against"]
    assert (against["ahead"], against["behind"], against["weightings"]) == (1, 1, 3)


def test_soups_catch_up_on_a_line_over_the_logarithm_of_rollouts(tmp_path):
    path = written(
        tmp_path,
        flat("clp-full", 3, 1, 0.5), flat("clp-full", 3, 3, 0.7),
        flat("soups", 3, 1, 0.4), flat("soups", 3, 3, 0.6), flat("soups", 4, 1, 0.4),
    )  # fmt: skip
    found = lines(compared(path))
    # half of the way from 600 to 1,800 rollouts: 600 sqrt(3) = 1039
    assert found["soups", 1]["catches_up"] == {"rollouts": pytest.approx(1039, abs=6), "bound": ""}
    assert found["soups", 3]["catches_up"] == {"rollouts": 1800, "bound": ">"}
    assert found["soups", 1]["against"]["seeds"] == [3]  # that both have


def test_a_method_with_models_for_some_weightings_is_compared_there(tmp_path):
    listed = run_rows("morlhf", 3, 1, values=np.full((2, 4), 0.25), weightings=[GRID[0], GRID[2]])
    found = lines(compared(written(tmp_path, flat("clp-full", 3, 1, 0.5), listed)))
    line = found["morlhf", 1]
    assert line["mean_j"] is None and line["catches_up"] is None and line["against"]["weightings"] == 2


def test_runs_that_are_not_alike_are_not_pooled_unasked(tmp_path):
    other = AXES | {"alpha": 0.2}
    path = written(tmp_path, flat("clp-full", 3, 1, 0.5), flat("soups", 3, 1, 0.4))
    moved = [
        run_rows(arm, 4, 1.0, axes=other, values=np.full((3, 4), j)) for arm, j in (("clp-full", 0.9), ("soups", 0.8))
    ]
    written(tmp_path, *moved, axes=other)
    with pytest.raises(ClpError) as raised:
        compared(path)
    line = str(raised.value)
    assert "panel two has runs with other axes: clp-full-3-1" in line and "--pool" in line and "\n" not in line
    pooled = compared(path, pool=True)
    assert pooled["panels"][0]["pooled"] == ["axes"] and lines(pooled)["soups", 1]["against"]["seeds"] == [3, 4]
    written(tmp_path, run_rows("clp-full", 3, 3.0), run_rows("soups", 3, 3.0, computed_on="bfloat16, cpu, 1 thread"))
    with pytest.raises(ClpError, match="other axes"):
        compared(path)
    assert (
        "against" not in lines(compared(path, pool=True))["soups", 3]
        or not lines(compared(path, pool=True))["soups", 3]["against"]
    )


def test_a_study_without_runs_says_so(tmp_path):
    with pytest.raises(ClpError, match="no run of study s yet; run `clp study s` first"):
        compared(tmp_path / "runs.csv")


def test_the_report_prints_one_table_and_draws_one_picture(tmp_path, capsys):
    path = written(
        tmp_path,
        *(
            flat(arm, seed, budget, 0.1 * budget)
            for arm in ("clp-full", "soups")
            for seed in (3, 4)
            for budget in (1, 3)
        ),
        run_rows("morlhf", 3, 1, values=np.full((2, 4), 0.25), weightings=[GRID[0], GRID[2]]),
    )
    study = Study.model_validate(VALUES)
    runs = [
        Planned("s", "two", "default", arm, arm, seed, budget, "test", "", None)  # type: ignore[arg-type]
        for budget in (1, 3) for arm in study.arms for seed in (3, 4)
    ]  # fmt: skip
    report(study, runs, path, tmp_path / "s.svg")
    printed = capsys.readouterr().out
    assert "two: a, b" in printed and "clp-full minus it" in printed and "9 of 12 runs, of commit abc." in printed
    assert "mean J" in (tmp_path / "s.svg").read_text()
    report(study, runs, path, tmp_path / "s.png", as_json=True)
    assert (
        json.loads(capsys.readouterr().out)["panels"][0]["lead"] == "clp-full"
        and (tmp_path / "s.png").stat().st_size > 1000
    )
