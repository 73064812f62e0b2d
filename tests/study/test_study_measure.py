"""A run's numbers by hand from its answers: J and its error, frontiers above the reference, groups of prompts."""

import json

import numpy as np
import pandas as pd
import pytest
from locations import recipe_values

from clp_lightning.config.parameters import check_values
from clp_lightning.errors import ClpError
from clp_lightning.study import measure
from clp_lightning.study.table import axes_hash

NAMES = ("informativeness", "brevity")
#            informativeness, brevity, KL of each prompt at w = (0, 1), (0.5, 0.5), (1, 0)
ANSWERS = {
    "p1": ([-1.0, 1.0, 2.0], [0.0, 0.0, 1.0], [2.0, 0.0, 4.0]),
    "p2": ([-1.0, 1.0, 2.0], [1.0, 1.0, 1.0], [3.0, 1.0, 8.0]),
    "p3": ([-1.0, 1.0, 2.0], [2.0, -1.0, 1.0], [1.0, 2.0, 0.0]),
}  # fmt: skip

GROUP = {"p1": "s3", "p2": "ec2", "p3": "s3"}


def frame(weightings, answers=ANSWERS):
    rows = [
        {"weighting_id": m, "prompt_id": prompt, "w:informativeness": w, "w:brevity": 1 - w, "reward:informativeness": one[m],
         "reward:brevity": two[m], "monitor:kl": kl[m], "monitor:length": 4.0, "group": GROUP[prompt]}
        for m, w in enumerate(weightings) for prompt, (one, two, kl) in answers.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.fixture
def config():
    values = recipe_values("smoke")
    values["training"]["alpha"] = 0.1
    return check_values(values, "smoke")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "models/reference", "results/reference-validation", "results/clp-full"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models/reference/model.safetensors").write_bytes(b"weights")
    scale = {name: {"mean": 0.0, "std": 1.0} for name in NAMES}
    (tmp_path / "data/normalization.json").write_text(json.dumps({"objectives": scale}))
    reference = {prompt: ([0.0], [-0.25], [0.0]) for prompt in ANSWERS}
    frame([0.5], reference).to_parquet("results/reference-validation/results.parquet")
    frame([0.0, 0.5, 1.0]).to_parquet("results/clp-full/results.parquet")
    return tmp_path


def test_j_is_what_training_maximizes(project, config):
    axes = measure.axes(config, "validation", project / "results/reference-validation")
    assert axes["reference_means"] == [0.0, -0.25] and axes["prompts"] == [["p1", "s3"], ["p2", "ec2"], ["p3", "s3"]]
    row, points = measure.rows(config, "clp-full", axes, project / "results/clp-full", "x")
    # (1 - 0.1) w.R - 0.1 KL, e.g. at w = (0, 1): p1 0.9 * 0 - 0.2, p2 0.9 * 1 - 0.3, p3 0.9 * 2 - 0.1
    expected = [[-0.2, 0.6, 1.7], [0.45, 0.8, -0.2], [1.4, 1.0, 1.8]]
    assert [point["weighting"] for point in points] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    np.testing.assert_allclose([point["by_prompt"] for point in points], expected)
    np.testing.assert_allclose([point["j"] for point in points], np.mean(expected, axis=1))
    assert points[2]["kl"] == 4.0 and points[1]["rewards"] == [1.0, 0.0]
    assert row["mean_j"] == pytest.approx(np.mean(expected)) and row["mean_kl"] == pytest.approx(21 / 9)
    np.testing.assert_allclose(row["corners_j"], [1.4, 2.1 / 3])  # w = (1, 0), then (0, 1)
    assert row["worst_objective"] == 1.0  # means (-1, 1), (1, 0), (2, 1): the last has a floor of 1
    # above the reference's means (0, -0.25): the last point alone, 2 * 1.25
    assert row["hypervolume_above_reference"] == pytest.approx(2.5)
    # regularized: 0.9 * (2, 1) - 0.1 * 4 = (1.4, 0.5), above 0.9 * (0, -0.25)
    assert row["regularized_hypervolume_above_reference"] == pytest.approx(1.4 * (0.5 + 0.225))
    assert (row["weightings"], row["prompts"], row["groups"], row["axes"]) == (3, 3, 2, axes_hash(axes))


def test_its_error_is_over_groups(project, config):
    axes = measure.axes(config, "validation", project / "results/reference-validation")
    row, _ = measure.rows(config, "clp-full", axes, project / "results/clp-full", "x")
    one = axes | {"prompts": [[name, name] for name, _ in axes["prompts"]]}  # every prompt a group of its own
    alone, _ = measure.rows(config, "clp-full", one, project / "results/clp-full", "x")
    by_prompt = np.mean([[-0.2, 0.6, 1.7], [0.45, 0.8, -0.2], [1.4, 1.0, 1.8]], axis=0)
    assert alone["mean_j_error"] == pytest.approx(by_prompt.std(ddof=1) / np.sqrt(3), rel=0.1)
    assert row["mean_j_error"] != pytest.approx(alone["mean_j_error"], rel=0.05)


def test_a_part_of_the_grid_has_no_mean_over_it(project, config):
    frame([0.0, 1.0], {name: tuple(v[::2] for v in each) for name, each in ANSWERS.items()}).to_parquet(
        "results/clp-full/results.parquet"
    )
    axes = measure.axes(config, "validation", project / "results/reference-validation")
    row, points = measure.rows(config, "clp-full", axes, project / "results/clp-full", "x")
    assert row["mean_j"] is None and row["mean_j_error"] is None and len(points) == 2
    np.testing.assert_allclose(row["corners_j"], [1.4, 0.7])
    frame([0.5], {name: tuple(v[1:2] for v in each) for name, each in ANSWERS.items()}).to_parquet(
        "results/clp-full/results.parquet"
    )
    assert measure.rows(config, "clp-full", axes, project / "results/clp-full", "x")[0]["corners_j"] == ""


def test_what_cannot_be_measured_is_one_line(project, config):
    axes = measure.axes(config, "validation", project / "results/reference-validation")
    fewer = {name: ANSWERS[name] for name in ("p1", "p2")}
    frame([0.0, 0.5, 1.0], fewer).to_parquet("results/clp-full/results.parquet")
    with pytest.raises(ClpError, match="other prompts than the reference policy's"):
        measure.rows(config, "clp-full", axes, project / "results/clp-full", "x")


def test_how_a_training_went(tmp_path):
    (tmp_path / "clp-full").mkdir()
    norms = pd.DataFrame(
        {"step": [0, 0, 1, 2, 3], "loss": 0.0, "gradient_norm": [0.5, 0.5, 1.5, 2.5, 0.1]}
    )  # two micro-batches
    norms.to_csv(tmp_path / "clp-full/training_curve.csv", index=False)
    assert measure.training(tmp_path, "clp-full", 1.0) == {"gradient_norm": 1.0, "clipped": 0.5}
