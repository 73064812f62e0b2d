"""The GPU script runs, with tiny shapes on the CPU: what it measures there says nothing about a GPU."""

import json
import os
import subprocess
import sys

import pytest
from locations import REPOSITORY

from bench.gpu import fast
from bench.gpu.subjects import TINY

MISSING = (  # on a usual GPU image, even with the wheels
    "bitsandbytes", "botocore", "datasets", "duckdb", "dvc", "fastapi", "gguf", "moocore", "omegaconf", "plotly", "prefect",
    "rouge_score", "streamlit",
)  # fmt: skip


def run(*arguments, **options):
    command = [sys.executable, "-m", "bench.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.slow
def test_fast_measures_what_it_plans_and_writes_it_all_down(tmp_path):
    done = run("--part", "fast", "--tiny", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert [fast.named(row) for row in report["rows"]] == fast.planned(TINY)
    assert report["left_out"] is None and report["machine"]["torch"]
    assert all(row["seconds"] > 0 for row in report["rows"][1:])
    assert done.stdout.splitlines()[-1].split()[2:5] == ["tiny", "training", "step"]


@pytest.mark.slow
def test_what_there_was_no_time_for_is_named(tmp_path):
    done = run("--part", "fast", "--tiny", "--limit", 0, "--out", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert done.returncode == 0 and len(report["rows"]) == 1
    assert report["left_out"] == "0 s were over before: " + "; ".join(fast.planned(TINY)[1:])
    done = run("--part", "right", "--tiny", "--limit", 0.1, "--out", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert done.returncode == 1 and report["rows"][-1]["outcome"].startswith("stopped after 0 of ")


@pytest.mark.slow
def test_right_runs_every_test_here_too_with_only_what_a_gpus_machine_has(tmp_path):
    halted = f"import sys\nfor name in {MISSING!r}:\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(halted)
    away = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = run("--part", "right", "--tiny", "--out", tmp_path / "out.json", env=os.environ | away)
    assert done.returncode == 0, done.stdout
    *tests, last = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert last["right"] and {test["outcome"] for test in tests} == {"passed", "skipped"} and len(tests) > 40
    assert sum(test["outcome"] == "skipped" for test in tests) == 6  # two need a GPU, four bitsandbytes


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do():
    done = run("--part", "fast", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "bench.gpu: torch finds no GPU; --tiny runs the same on the CPU"
    done = run("--part", "fast", "--tiny", "--only", "8B")
    assert done.stderr.strip().splitlines()[-1] == "bench.gpu: --only 8B: expected one of tiny"
