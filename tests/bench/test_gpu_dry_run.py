"""The GPU script runs, with tiny shapes on the CPU: what it measures there says nothing about a GPU."""

import json
import subprocess
import sys

import pytest
from locations import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize(("part", "rows"), [("fast", 6), ("right", 1)])
def test_the_gpu_script_runs_on_a_cpu(part, rows, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench.gpu", "--part", part, "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert len(report["rows"]) == rows and report["left_out"] is None and report["machine"]["torch"]


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do():
    command = [sys.executable, "-m", "bench.gpu", "--part", "fast"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "bench.gpu: torch finds no GPU; --tiny runs the same on the CPU"
