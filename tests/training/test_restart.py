"""A training that is killed outright at 60 % repeats less than a tenth of its steps and ends as if undisturbed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

STEPS = 40
# every step prints its line, not one in fifteen seconds
TRAIN = """
import sys
from clp_lightning import progress
progress.LINE_SECONDS = 0
from clp_lightning.cli.app import main
sys.argv = ["clp", "stage", "train", "--method", "clp-full"]
main()
"""


@pytest.fixture
def workspace(smoke, tmp_path):
    def make(name: str) -> Path:
        folder = Path(shutil.copytree(smoke, tmp_path / name))
        yaml = YAML(pure=True)
        values = yaml.load(folder / "params.yaml")
        values["training"]["steps"] = STEPS
        yaml.dump(values, folder / "params.yaml")
        return folder

    return make


def training(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", TRAIN], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip


def curve(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "models" / "clp-full" / "training_curve.csv").drop(columns="seconds")


def test_little_is_repeated_and_the_result_is_that_of_an_undisturbed_training(workspace):
    undisturbed, killed = workspace("undisturbed"), workspace("killed")
    whole = training(undisturbed)
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output

    first, done = training(killed), 0
    while done < 0.6 * STEPS:
        line = first.stdout.readline()
        assert line, "the training ended before it could be killed"
        if found := re.search(rf"step (\d+) of {STEPS}", line):
            done = int(found.group(1))
    first.send_signal(signal.SIGKILL)
    rest = first.communicate()[0]
    done = max([done, *map(int, re.findall(rf"step (\d+) of {STEPS}", rest))])
    assert first.returncode == -signal.SIGKILL and done < STEPS

    second = training(killed)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output
    resumed = int(re.search(r"resumed after step (\d+) of", output).group(1))
    assert 0 <= done - resumed < 0.1 * STEPS, (done, resumed)
    pd.testing.assert_frame_equal(curve(killed), curve(undisturbed))
    weights = [
        (folder / "models" / "clp-full" / "experts.safetensors").read_bytes() for folder in (killed, undisturbed)
    ]
    assert weights[0] == weights[1]
    assert not list((killed / "checkpoints").glob("train-*"))
