"""What the flows are made of, without a server: progress lines, artifact keys, curves, mistakes in prefect.yaml."""

import shutil

import pytest

from clp_lightning import paths
from clp_lightning.pipeline import records
from flows import artifacts, dvc_state
from flows.check import wrong


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        ("step 12 of 45, 1:40 left, loss 0.31", ("12", "45")),
        ("sample: 3 of 11, 0:20 left", ("3", "11")),
        ("3 of 4 is what it says", None),
        ("misstep 3 of 4", None),
    ],
)
def test_progress_is_read_from_the_lines_that_progress_prints(line, numbers):
    found = artifacts.STEPS.search(line)
    assert (found and tuple(group for group in found.groups() if group)) == numbers


def test_artifact_keys_are_what_prefect_takes():
    assert artifacts.key("train@clp-full+prompt", "metrics") == "train-clp-full-prompt-metrics"
    assert artifacts.key("reward_model", "curve") == "reward-model-curve"


def test_nested_metrics_become_rows():
    assert artifacts.flat({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}
    assert artifacts.flat({}) == {}


def test_a_curve_becomes_a_picture_also_with_gaps(tmp_path):
    (tmp_path / "curve.csv").write_text("step,loss,kl,seconds\n1,2.0,,1\n2,1.0,0.5,1\n")
    assert artifacts._plot(tmp_path / "curve.csv").startswith(b"\x89PNG")


def test_a_stage_that_trains_nothing_has_an_empty_curve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records.curve("sft", [])
    curve = paths.REPORTS / "curves" / "sft.csv"
    assert curve.read_text() == "step,loss\n"  # DVC wants the file and draws nothing
    assert artifacts._plot(curve).startswith(b"\x89PNG")


def test_the_projects_own_deployments_are_right(repository, tmp_path):
    assert wrong(repository / "prefect.yaml") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('cron: "0 3 * * *"', 'cron: "0 25 * * *"', "deployment 'retrain': schedule '0 25 * * *' in 'UTC'"),
        ('cron: "0 3 * * *"', 'cron: "every night"', "schedule 'every night'"),
        ("timezone: UTC", "timezone: Mars/Base", "in 'Mars/Base'"),
        ("        timezone: UTC\n", "", "a schedule lacks 'timezone'"),
        ("name: clp-process", "name: gpu-pool", "work pool 'gpu-pool' is not 'clp-process'"),
        ("deployments:", "deployment:", "no deployments can be read"),
        ("deployments:", "deployments: [", "no deployments can be read"),
    ],
)
def test_a_mistake_in_the_deployments_is_one_line(repository, tmp_path, old, new, message):
    file = tmp_path / "prefect.yaml"
    text = (repository / "prefect.yaml").read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    line = wrong(file)
    assert line is not None and message in line and "\n" not in line, line
    shutil.rmtree(tmp_path)
    assert "no deployments can be read" in wrong(file)


LOCK = """schema: '2.0'
stages:
  left:
    cmd: echo left > left.txt
    outs:
    - path: left.txt
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 5
"""


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A workspace whose dvc.lock was kept once."""
    monkeypatch.setattr(dvc_state, "PATIENCE", 0.0)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(LOCK)
    dvc_state.keep(tmp_path)
    assert dvc_state.heal(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize("end", [0, 9, 25, 60, len(LOCK) - 20])
def test_a_lock_that_was_cut_short_comes_back(killed, end):
    (killed / "dvc.lock").write_text(LOCK[:end])
    dvc_state.keep(killed)  # what is broken is not kept
    told = dvc_state.heal(killed)
    text = (killed / "dvc.lock").read_text()
    # cut between two lines it may still be a lock, of fewer outputs: DVC then runs the stage again
    assert text == LOCK or (not told and text == LOCK[:end])
    if end in (0, 9, 25):
        assert text == LOCK and len(told) == 1
    assert dvc_state.heal(killed) == []


def test_without_a_copy_the_lock_goes_and_a_broken_rwlock_too(killed):
    (killed / ".dvc" / "tmp" / "dvc.lock.kept").unlink()
    (killed / "dvc.lock").write_text("")
    (killed / ".dvc" / "tmp" / "rwlock").write_text('{"read": {')
    assert len(dvc_state.heal(killed)) == 2
    assert not (killed / "dvc.lock").exists() and not (killed / ".dvc" / "tmp" / "rwlock").exists()
