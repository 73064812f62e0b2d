"""Commands that write where a user says: nothing that they did not write is ever replaced (each was, in version 0.1)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def place(smoke, tmp_path):
    """A finished project with files of its user's in folders that a command could be told to write to."""
    folder = Path(shutil.copytree(smoke, tmp_path / "project"))
    for name in ("reports", "results", "models", "notes"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "thesis.txt").write_text("mine")
    return folder


def clp(folder, *arguments):
    command = [sys.executable, "-m", "clp_lightning.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def kept(folder: Path) -> bool:
    return all(
        (folder / name / "thesis.txt").read_text() == "mine" for name in ("reports", "results", "models", "notes")
    )


def test_a_report_for_a_folder_lies_in_it(place):
    done = clp(place, "report", "reports")
    assert done.returncode == 0 and "wrote reports/report.html" in done.stdout and kept(place)
    assert "<html" in (place / "reports" / "report.html").read_text()


@pytest.mark.slow
def test_answers_for_a_folder_lie_in_it(place):
    done = clp(place, "evaluate", "--out", "results", "--weighting", "brevity=1")
    assert done.returncode == 0, done.stderr
    assert (place / "results" / "evaluation.parquet").is_file() and kept(place)


@pytest.mark.parametrize(
    ("out", "problem"),
    [("models", "models: holds files that this command did not write (it has no clp_export.json); name another folder"),
     ("notes", "notes: holds files that this command did not write (it has no clp_export.json); name another folder"),
     ("models/clp-full", "models/clp-full: holds files that this command did not write"),
     ("params.yaml", "params.yaml: there is a file of this name; name another folder"),
     (".", ".: this is the folder you are in, or above it; name another"),
     ("..", "..: this is the folder you are in, or above it; name another")],
)  # fmt: skip
def test_an_export_replaces_nothing_but_an_export(out, problem, place):
    done = clp(place, "export", "--weighting", "brevity=1", out)
    assert done.returncode == 2 and done.stderr.startswith(f"clp: error: {problem}"), done.stderr
    assert done.stderr.count("\n") == 1 and kept(place)


@pytest.mark.slow
def test_an_export_replaces_an_earlier_one(place):
    for _ in range(2):
        done = clp(place, "export", "--weighting", "brevity=1", "build/exported")
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_picture_of_the_oracle_goes_into_a_folder_and_its_name_is_checked_before_the_training(place):
    done = clp(place, "oracle", "--steps", "10", "--picture", "reports/curve.docx")
    assert (
        done.returncode == 2
        and "--picture reports/curve.docx: expected a name that ends in .png or .svg" in done.stderr
    )
    done = clp(place, "oracle", "--steps", "10", "--picture", "notes")
    assert done.returncode == 0, done.stderr
    assert list((place / "notes").glob("oracle-*.png")) and kept(place)


def test_a_policy_is_saved_over_nothing_but_a_policy(place):
    import torch

    from clp_lightning import SteerablePolicy
    from clp_lightning.errors import UsageError

    policy = SteerablePolicy.from_pretrained(place / "models" / "clp-full", dtype=torch.float32)
    with pytest.raises(UsageError, match="did not write"):
        policy.save(place / "notes", base_model="../reference")
    assert kept(place)
