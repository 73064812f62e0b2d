"""The flow `sweep`: blocks cover every point once, and whoever samples them, the results are the same."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from processes import wait_until
from test_flows_server import Prefect

from clp_lightning.config.parameters import load_config
from clp_lightning.project.workspace import prepare
from flows.sweep import blocks, task_runner


def test_blocks_cover_every_point_once_and_take_turns(repository):
    config = load_config(repository / "params.yaml")
    found = list(blocks(config, ["reference", "clp-full"], 4))
    assert found == [
        ("reference", [0]),
        ("clp-full", [0, 1, 2, 3]),
        ("clp-full", [4, 5, 6, 7]),
        ("clp-full", [8, 9, 10]),
    ]
    assert not list(blocks(config, [], 4))


def test_an_unknown_runner_is_one_line():
    with pytest.raises(ValueError, match="runner 'spark': unknown; choose one of processes, dask, ray"):
        task_runner("spark", 2)


def run(folder, *command, env=os.environ):
    """Run with one thread, as each of two workers has on two cores: sums round differently with another number."""
    env = env | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """A Prefect server of this test's own."""
    prefect = Prefect(repository, tmp_path_factory.mktemp("prefect"))
    try:
        prefect.launch("server")
        assert wait_until(prefect.healthy, 90), prefect.logs()
        yield prefect
    finally:
        prefect.stop()


def test_without_a_server_the_sweep_says_so(repository, tmp_path):
    environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows.sweep"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Prefect server answers at") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def trained(repository, tmp_path_factory):
    """A smoke run up to its trained methods."""
    folder = prepare("smoke", tmp_path_factory.mktemp("sweep") / "project", root=repository)
    run(folder, "dvc", "repro", "train@clp-full", "train@rewarded-soups")
    return folder


def results(folder):
    names = ("reference", "clp-full", "rewarded-soups")
    return {name: pd.read_parquet(folder / "results" / name / "results.parquet") for name in names}


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """What the stages themselves write."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("expected") / "project")
    run(folder, "dvc", "repro")
    return results(folder)


@pytest.mark.parametrize(
    "runner",
    [
        pytest.param("processes", marks=pytest.mark.slow),
        pytest.param("dask", marks=pytest.mark.scale),
        pytest.param("ray", marks=pytest.mark.scale),
    ],
)
def test_every_runner_gives_the_points_of_the_stage(runner, repository, trained, expected, server, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "project")
    options = ["--workspace", str(folder), "--runner", runner, "--workers", str(os.cpu_count()), "--block", "2"]
    done = run(repository, "flows.sweep", *options, env=server.environment)
    assert f"5 blocks on {os.cpu_count()} workers ({runner})" in done.stdout + done.stderr
    for name, rows in results(folder).items():
        pd.testing.assert_frame_equal(rows, expected[name])
