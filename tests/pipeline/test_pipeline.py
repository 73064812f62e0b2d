"""The smoke variant of the pipeline, every stage in this process, and what users do with its results."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from clp_lightning.cli.app import app
from clp_lightning.config.parameters import load_config
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.pipeline import stages
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.project.workspace import prepare

WEIGHTS = "informativeness=0.8,brevity=0.2"


@pytest.fixture(scope="session")
def project(smoke):
    return smoke


def clp(folder, *arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "clp_lightning.cli", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_declared_output_was_written(project):
    for path in (
        "models/reference/model.safetensors",
        "models/informativeness/model.safetensors",
        "models/clp-full/clp.json",
        "models/rewarded-soups/experts.safetensors",
        "data/normalization.json",
        "reports/frontier.png",
        "reports/frontier.json",
        "reports/metrics/reward_model-informativeness.json",
        "reports/curves/train-clp-full.csv",
        "frontier.duckdb",
    ):
        assert (project / path).is_file(), path
    assert not list(project.rglob("*.partial"))
    assert not list((project / "checkpoints").iterdir())  # removed by stages that succeeded


def test_results_have_the_same_prompts_at_every_weighting(project):
    config = load_config(project / "params.yaml")
    frame = pd.read_parquet(project / "results/clp-full/results.parquet")
    assert len(frame) == config.evaluation.weightings * config.evaluation.prompts
    prompts = [list(group["prompt_id"]) for _, group in frame.groupby("weighting_id")]
    assert prompts[0] == prompts[1] == prompts[2]
    scale = json.loads((project / "data/normalization.json").read_text())["objectives"]["brevity"]
    np.testing.assert_allclose(frame["reward:brevity"], (frame["raw:brevity"] - scale["mean"]) / scale["std"])
    reference = pd.read_parquet(project / "results/reference/results.parquet")
    assert reference["w:brevity"].isna().all() and (reference["monitor:kl"] == 0).all()
    assert set(frame["prompt_id"]) == set(reference["prompt_id"])


def test_recorded_kl_equals_that_of_the_policy(project):
    frame = pd.read_parquet(project / "results/clp-full/results.parquet")
    row = frame[frame["weighting_id"] == 1].iloc[0]
    policy = SteerablePolicy.from_pretrained(project / "models/clp-full", dtype=torch.float32)
    weighting = {"informativeness": 0.5, "brevity": 0.5}
    ids, _ = policy.tokenize_responses([row["response"]])
    assert row["monitor:length"] <= policy.generation.max_new_tokens
    prompts = policy.tokenize([row["document"]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        steered = policy.score(prompts, ids, mask, policy.coefficients(weighting, 1))
        reference = policy.score(prompts, ids, mask, None)
    assert (steered - reference).abs().max() > 0  # training moved the experts
    assert abs(row["monitor:kl"]) < 5


def test_interrupted_training_continues_and_equals_an_undisturbed_run(smoke, tmp_path, monkeypatch):
    """Stop after the first checkpoint, run again: the same experts, bit for bit."""
    from clp_lightning.training import clp as training

    project = Path(shutil.copytree(smoke, tmp_path / "project"))  # the seconds in its training curve will be others
    config = load_config(project / "params.yaml")
    monkeypatch.chdir(project)
    before = (project / "models/rewarded-soups/experts.safetensors").read_bytes()
    original = training.ClpModule.training_step

    def dies(self, batch, batch_idx):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(training.ClpModule, "training_step", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        stages.run("train", config, "rewarded-soups")
    assert list((project / "checkpoints").glob("train-rewarded-soups-*/last.ckpt"))
    steps = []

    def counts(self, batch, batch_idx):
        steps.append(self.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(training.ClpModule, "training_step", counts)
    stages.run("train", config, "rewarded-soups")
    assert steps == [2]
    assert (project / "models/rewarded-soups/experts.safetensors").read_bytes() == before
    curve = pd.read_csv(project / "models/rewarded-soups/training_curve.csv")
    assert curve["step"].tolist() == [0, 1, 2]


def test_cli_generate_reads_arguments_and_standard_input(project):
    long = "list keys: lists all " * 50
    ran = clp(project, "generate", "--weighting", WEIGHTS, "delete bucket: removes it", long)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) >= 2
    (note,) = ran.stderr.splitlines()
    assert re.fullmatch(
        r"clp: warning: prompt 2: \d+ of its \d+ tokens do not fit into generation\.max_prompt_tokens \(64\); "
        "its end is left out", note,
    )  # fmt: skip
    piped = clp(
        project,
        "generate",
        "--weighting",
        WEIGHTS,
        "--json",
        stdin="delete bucket: removes it\n\nlist keys: lists all\n",
    )
    answers = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["delete bucket: removes it", "list keys: lists all"]
    several = clp(project, "generate", "--weighting", WEIGHTS, "--weighting", "brevity=1", "[bold]x[/bold] y")
    assert several.returncode == 0 and "[bold]" in several.stdout


def test_cli_export_writes_a_model_that_transformers_loads(project, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    done = clp(project, "export", "--weighting", WEIGHTS, str(tmp_path / "out"))
    assert done.returncode == 0 and "transformers loads it" in done.stdout, done.stderr
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings is False
    monkeypatch.chdir(project)
    exporting = ["export", "--weighting", WEIGHTS, str(tmp_path / "other"), "--format"]
    done = CliRunner().invoke(app, [*exporting, "peft"])
    assert (
        "peft loads it\nbefore PeftModel.from_pretrained(model, ...) and merging, untie the base: head =" in done.stdout
    )
    refused = CliRunner().invoke(app, [*exporting, "onnx"]).exception
    assert isinstance(refused, UsageError) and "format: expected one of hf, peft" in str(refused)


def test_cli_frontier_prints_the_contract(project):
    table = clp(project, "frontier")
    assert table.returncode == 0 and "clp-full" in table.stdout and "rewarded-soups" in table.stdout
    compared = json.loads(clp(project, "frontier", "--json").stdout)
    assert {"run", "reference_point", "normalization", "methods"} <= compared.keys()
    assert [row["method"] for row in compared["methods"]] == ["reference", "clp-full", "rewarded-soups"]
    point = compared["methods"][1]["points"][0]
    assert {"weighting", "rewards", "intervals", "monitors"} <= point.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("generate", "--weighting", "informativeness=0.5", "x"), 2, "entries sum to 0.5, not 1"),
        (("generate", "--weighting", "brevity=-1,informativeness=2", "x"), 2, "brevity=-1.0 must be a number >= 0"),
        (("generate", "--weighting", "speed=1", "x"), 2, "unknown objective 'speed'"),
        (("generate", "--weighting", WEIGHTS, " "), 2, "prompt 1 is empty"),
        (("generate", "x"), 2, "give at least one --weighting over informativeness, brevity"),
        (("generate", "--model", "models/none", "--weighting", WEIGHTS, "x"), 1, "no steerable model at models/none"),
        (("frontier", "--store", "none.duckdb"), 1, "none.duckdb"),
        (("frontier", "--store", "params.yaml"), 1, "params.yaml"),
        (("generate", "--alpha", "0.5", "--weighting", WEIGHTS, "x"), 2, "trained at one KL strength and takes none"),
        (("stage", "nonsense"), 2, "no stage 'nonsense'"),
        (("stage", "train"), 2, "stage train needs --method"),
        (
            ("stage", "base", "--method", "x"),
            2,
            "stage base takes no --method; leave it out, or name one of train, evaluate",
        ),
        (("stage", "train", "--reward", "x"), 2, "stage train takes no --reward; leave it out, or name one of pairs, "),
        (("stage", "train", "--method", "ppo"), 2, "methods.ppo: no such method"),
        (("stage", "corpus", "--params", "none.yaml"), 2, "none.yaml: No such file"),
    ],
)
def test_bad_use_is_one_line_and_an_exit_code(project, arguments, code, message):
    ran = clp(project, *arguments)
    assert ran.returncode == code, ran.stderr
    assert message in ran.stderr and len(ran.stderr.strip().splitlines()) == 1


def test_empty_standard_input_is_named(project):
    ran = clp(project, "generate", "--weighting", WEIGHTS, stdin="\n")
    assert ran.returncode == 2 and "standard input held no text" in ran.stderr


def test_stages_refuse_what_is_missing(tmp_path, monkeypatch, repository):
    folder = prepare("smoke", tmp_path / "new", root=repository)
    monkeypatch.chdir(folder)
    config = load_config()
    for name, method in (("pairs", None), ("sft", None), ("evaluate", "clp-full"), ("publish", None)):
        with pytest.raises(ClpError) as error:
            stages.run(name, config, method)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError):
        stages.run("train", config, "nonsense")


@pytest.mark.slow
def test_an_edit_beside_the_computation_reruns_no_training(smoke, repository, tmp_path):
    def edited(*modules: str) -> set[str]:
        for module in modules:
            file = project / "src" / "clp_lightning" / module
            file.write_text(f"{file.read_text()}\n# edited\n")
        done = subprocess.run([*dvc, "status", "--json"], cwd=project, capture_output=True, text=True)
        return set(json.loads(done.stdout))

    dvc = [sys.executable, "-m", "dvc"]
    project = Path(shutil.copytree(smoke, tmp_path / "project"))
    subprocess.run([*dvc, "commit", "--force", "--quiet"], cwd=project, check=True)
    assert edited() == set()
    beside = ["cli/app.py", "serving/server.py", "promotion/champion.py", "oracle/exact.py", "project/doctor.py"]
    assert edited(*beside, "config/recipes.py", "progress.py") == set()
    assert edited("report/tables.py", "store/queries.py", "frontier/metrics.py") == {"publish"}
    assert edited("evaluation/sweep.py") == {
        "publish",
        "evaluate_reference",
        "evaluate@clp-full",
        "evaluate@rewarded-soups",
    }
    training = {"sft", "reward_model@informativeness", "train@clp-full", "train@rewarded-soups"}
    assert training <= edited("training/losses.py")  # the check of the check
    text = (repository / "dvc.yaml").read_text(encoding="utf-8").split("stages:", 1)[1]
    assert not re.findall(r"\b(?:dashboard|flows|docs|bench)/", text.replace("tests/flows/", ""))  # in no stage's deps
