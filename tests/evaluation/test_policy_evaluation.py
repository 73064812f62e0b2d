"""`clp evaluate` on a finished smoke run: the pipeline's own points, own prompts, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from locations import REPOSITORY
from typer.testing import CliRunner

from clp_lightning.cli.app import app
from clp_lightning.config.parameters import load_config
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.evaluation import on_demand
from clp_lightning.evaluation.prompts import draw_prompts
from clp_lightning.evaluation.results import evaluate_into
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.promotion import champion
from clp_lightning.store.queries import Store


@pytest.fixture
def project(smoke, tmp_path, monkeypatch):
    folder = shutil.copytree(smoke, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def test_the_grid_on_the_test_prompts_gives_what_the_pipeline_measured(project):
    config = load_config("params.yaml")
    # in float32, as commands answer: the pipeline's own precision may be another, in which a token may be another one
    exact = config.model_copy(update={"compute": config.compute.model_copy(update={"dtype": "float32"})})
    measured = evaluate_into(exact, "clp-full", project / "models", project / "exact")
    points = on_demand.parse_points([], config.objectives, config)
    frame = on_demand.evaluate_policy(config, project / "models" / "clp-full", points, None)
    assert frame.response.tolist() == measured.response.tolist()
    np.testing.assert_allclose(frame["reward:brevity"], measured["reward:brevity"])
    row = on_demand.summarize(frame, config.objectives)[0]
    first = measured[measured.weighting_id == 0]
    assert row["rewards"]["brevity"] == pytest.approx(first["reward:brevity"].mean())
    # Student's t over 8 prompts by hand: mean +- 2.3646 s / sqrt(8)
    half = 2.3646 * first["reward:brevity"].std(ddof=1) / np.sqrt(8)
    assert row["intervals"]["brevity"][1] - row["rewards"]["brevity"] == pytest.approx(half, rel=1e-3)


def test_j_is_what_the_store_has(project):
    config = load_config("params.yaml")
    frame = pd.read_parquet("results/clp-full/results.parquet")
    found = on_demand.measure_objective(frame, config, grid=True)
    store = Store(project / "frontier.duckdb")
    run = store.run(None)["run_id"]
    stored = store.objective(run)
    stored = stored[stored.method == "clp-full"]
    np.testing.assert_allclose([point["j"] for point in found["by_weighting"]], stored.j)
    np.testing.assert_allclose([point["kl"] for point in found["by_weighting"]], stored.kl)
    metrics = store.metrics(run)
    metrics = metrics[(metrics.method == "clp-full") & metrics.target.isna()].set_index("metric")
    assert found["mean_j"] == pytest.approx(metrics.value["mean_j"])
    assert found["mean_kl"] == pytest.approx(metrics.value["mean_kl"])
    low, high = found["mean_j_interval"]
    assert high - found["mean_j"] == pytest.approx(found["mean_j"] - low) and low < metrics.value["mean_j"] < high
    alone = on_demand.measure_objective(frame.assign(group="one"), config, grid=True)
    assert alone["mean_j_interval"] is None and alone["mean_j"] == found["mean_j"]


def test_the_champion_on_own_prompts(project):
    champion.keep("abc", "clp-full", champion.Path("results/clp-full"))
    champion.crown("abc", "clp-full", "2026-01-01T00:00:00", against=None)
    (project / "own.txt").write_text("create bucket: [/b] The name of the bucket.\n\ndelete key\n", encoding="utf-8")
    command = ["evaluate", "--model", "champion", "--prompts", "own.txt", "--weighting", "brevity=1"]
    done = CliRunner().invoke(app, [*command, "--json", "--out", "answers.parquet"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["model"] == "models/kept/abc/clp-full" and report["prompts"] == 2
    (point,) = report["points"]
    alpha, kl = report["alpha"], point["monitors"]["kl"]
    assert report["mean_j"] == pytest.approx((1 - alpha) * point["rewards"]["brevity"] - alpha * kl)
    assert report["by_weighting"][0]["j"] == report["mean_j"] and report["mean_kl"] == pytest.approx(kl)
    assert point["weighting"] == {"informativeness": 0.0, "brevity": 1.0} and point["monitors"]["rouge_l"] is None
    assert pd.read_parquet("answers.parquet").document.tolist() == [
        "create bucket: [/b] The name of the bucket.", "delete key",
    ]  # fmt: skip
    (project / "one.txt").write_text("delete key " * 100 + "\n")
    done = CliRunner().invoke(app, [*command[:4], "one.txt", *command[5:]])
    assert done.exit_code == 0 and "0:1" in done.output.replace(" ", "")
    assert "J = (1 - alpha) w.R - alpha KL, alpha 0." in " ".join(done.output.split())
    assert "clp: warning: prompt 1: " in done.stderr and "; its end is left out\n" in done.stderr


def test_settings_are_chosen_on_services_that_no_test_prompt_is_from(project):
    command = ["evaluate", "--weighting", "brevity=1", "--split", "validation", "--json", "--out", "answers.parquet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["split"] == "validation"
    validation, test = (pd.read_parquet(f"data/corpus/{name}.parquet") for name in ("validation", "test"))
    answered = set(pd.read_parquet("answers.parquet").prompt_id)
    assert answered <= set(validation.id) and not answered & set(test.id) and len(answered) == 8
    config = load_config("params.yaml")
    evaluate_into(config, "rewarded-soups", project / "models", project / "chosen", draw_prompts(config, "validation"))
    assert set(pd.read_parquet("chosen/results.parquet").prompt_id) == answered
    for wrong in (["--split", "train"], ["--split", "test", "--prompts", "own.txt"]):
        refused = CliRunner().invoke(app, ["evaluate", *wrong])
        assert isinstance(refused.exception, UsageError) and str(refused.exception).startswith("--split: ")


def test_it_answers_on_the_device_of_params_yaml(monkeypatch):
    class Loaded(Exception):
        pass

    def load(folder, **options):
        raise Loaded(options)

    monkeypatch.setattr(SteerablePolicy, "from_pretrained", load)
    config = load_config(REPOSITORY / "params.yaml")
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"device": "cpu"})})
    with pytest.raises(Loaded) as raised:
        on_demand.evaluate_policy(config, REPOSITORY / "models" / "clp-full", np.ones((1, 2)), None)
    assert raised.value.args[0] == {"device": "cpu"}


def test_refused(project, tmp_path):
    with pytest.raises(UsageError, match=r"lost\.txt: cannot be read"):
        on_demand.own_prompts(tmp_path / "lost.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="no prompt in it"):
        on_demand.own_prompts(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="UTF-8"):
        on_demand.own_prompts(tmp_path / "latin.txt")
    with pytest.raises(UsageError, match="there is no champion yet"):
        champion.resolve(champion.Path("champion"))
    config = load_config("params.yaml")
    other = config.model_copy(update={"rewards": {"brevity": config.rewards["brevity"]}})
    with pytest.raises(ClpError, match="steers informativeness, brevity, but"):
        on_demand.evaluate_policy(other, project / "models" / "clp-full", np.ones((1, 1)), None)
