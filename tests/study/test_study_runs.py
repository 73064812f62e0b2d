"""Studies that really train: a tiny project, every run a process, interruptions, and what is refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML
from tiny_study import STUDY, write_project

from clp_lightning.errors import ClpError
from clp_lightning.study import folders, table, worker
from clp_lightning.study.definition import load_study
from clp_lightning.study.runs import outstanding, plan
from clp_lightning.study.schedule import Place, last_line, run_study


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose shared stages are done; not to be changed."""
    root = write_project(tmp_path_factory.mktemp("study"))
    folder = folders.prepare_shared(runs_of(root)[0], root / "work", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_end_with_parent", lambda: None)
        assert worker.work(folder, "validation", None) == 0
    return root


def runs_of(root, **only):
    name, study = load_study("tiny", root)
    return plan(name, study, root, only=only)


def copied(project, tmp_path) -> Path:
    return Path(shutil.copytree(project, tmp_path / "project", symlinks=True))


def train(root, run):
    folder = folders.prepare_run(run, root / "work", root, "abc")
    return folder, worker.work(folder, None, folders.shared_folder(run, root / "work").resolve())


@pytest.fixture
def parent(monkeypatch):
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)


def test_a_run_leaves_its_row_and_shares_what_is_the_same(project, tmp_path, parent):
    root = copied(project, tmp_path)
    first, soups = (runs_of(root, arm=[arm], budget=[1], seed=[5])[0] for arm in ("clp-full", "soups"))
    for run in (first, soups):
        folder, status = train(root, run)
        assert status == 0
        result = json.loads((folder / "row.json").read_text())
        table.add(root / "runs.csv", result["run"], result["points"], result["axes"])
    tables = table.read(root / "runs.csv")
    row, other = (tables.find(run.key) for run in (first, soups))
    assert row["rollouts"] == 8 and other["rollouts"] == 16 and row["axes"] == other["axes"]
    assert row["config"] == first.config_hash[:12] and row["commit"] == "abc" and " thread" in row["computed_on"]
    answers = pd.read_parquet(folder / "results/soups/results.parquet")
    assert other["mean_kl"] == pytest.approx(answers["monitor:kl"].mean(), abs=1e-5) and other["weightings"] == 3
    validation = pd.read_parquet(folder / "data/corpus/validation.parquet")
    assert set(answers.prompt_id) <= set(validation.id)
    assert other["groups"] == validation.set_index("id").loc[answers.prompt_id.unique(), "group"].nunique() > 1
    assert (folder / "models/reference").is_symlink() and not list(root.rglob("*.partial"))
    assert sorted(path.name for path in folder.rglob("*.safetensors") if not path.is_symlink()) == [
        "experts.safetensors"
    ]


def with_scaled(root):
    """Add arms that decode from clp-full, before it in the file."""
    study = dict(STUDY, seeds=[5], budgets=[1], arms={
        "same": {"of": "clp-full", "decoding": {"kind": "scaled", "factor": 1.0}},
        "less": {"of": "clp-full", "decoding": {"kind": "scaled", "factor": 0.01}},
        "clp-full": {"method": "clp-full", "training": {"learning_rate": 0.1}},
    })  # fmt: skip
    with (root / "conf/studies/tiny.yaml").open("w") as stream:
        YAML(typ="safe", pure=True).dump(study, stream)
    return {run.arm: run for run in runs_of(root)}


def test_an_arm_of_another_evaluates_its_policy_and_trains_nothing(project, tmp_path, parent, capsys):
    root = copied(project, tmp_path)
    runs, place = with_scaled(root), Place(root, root / "work", root / "runs.csv")
    with pytest.raises(ClpError, match="1 run of study tiny failed"):
        run_study([runs["less"]], place, jobs=1, threads=1)
    assert (
        "own/less x1 seed 5: failed: it takes the policy of own/clp-full x1 seed 5, which is not done; run that too, e.g. with "
        "--arm clp-full"
    ) in " ".join(capsys.readouterr().out.split())
    rows = {}
    for arm in ("clp-full", "same", "less"):
        folder, status = train(root, runs[arm])
        assert status == 0, (folder / "log.txt").read_text()
        result = json.loads((folder / "row.json").read_text())
        table.add(place.table, result["run"], result["points"], result["axes"])
        rows[arm] = table.read(place.table).find(runs[arm].key)
    assert [path for path in folder.rglob("*.safetensors") if not path.is_symlink()] == []
    trained, same, less = rows["clp-full"], rows["same"], rows["less"]
    for key in ("learning_rate", "gradient_clip", "gradient_norm", "clipped", "rollouts", "method", "axes"):
        assert trained[key] == same[key] == less[key]
    # a factor of 1 is the policy as it was trained, answer for answer; little of the update is nearer to the reference (KL is an
    # estimate, which may be below 0 where there is next to none)
    assert same["mean_j"] == trained["mean_j"] and same["mean_kl"] == trained["mean_kl"]
    assert abs(less["mean_kl"]) < abs(trained["mean_kl"])
    assert less["settings"] == "of=clp-full decoding.kind=scaled decoding.factor=0.01"
    assert less["config"] == runs["less"].config_hash[:12] and not outstanding(
        [*runs.values()], table.read(place.table), root
    )


def test_a_policy_that_is_gone_names_the_run_to_do_again(project, tmp_path, parent, capsys):
    root = copied(project, tmp_path)
    runs, place = with_scaled(root), Place(root, root / "work", root / "runs.csv")
    folder, _ = train(root, runs["clp-full"])
    result = json.loads((folder / "row.json").read_text())
    table.add(place.table, result["run"], result["points"], result["axes"])
    for change in (
        lambda: (folder / "row.json").write_text(
            (folder / "row.json").read_text().replace(result["run"]["date"], "2001")
        ),
        lambda: shutil.rmtree(folder),
    ):
        change()  # another training than the row's; none
        with pytest.raises(ClpError, match="1 run of study tiny failed"):
            run_study([runs["less"]], place, jobs=1, threads=1)
        line = " ".join(capsys.readouterr().out.split())
        assert "own/less x1 seed 5: failed: the policy of own/clp-full x1 seed 5 is not in " in line
        assert "delete that run's row and run it again, or name its folder with --work" in line
    changed = dataclasses.replace(runs["clp-full"], split="test")
    with pytest.raises(ClpError, match="own/clp-full x1 seed 5 of study tiny was run with other settings"):
        run_study([dataclasses.replace(runs["less"], trained=changed)], place, jobs=1, threads=1)


@pytest.mark.slow
def test_arms_of_another_wait_for_its_run(project, tmp_path):
    root = copied(project, tmp_path)
    with_scaled(root)
    assert command(root).wait(300) == 0
    rows = {row["arm"]: row for row in table.read(root / "runs.csv").runs}
    assert set(rows) == {"clp-full", "same", "less"} and rows["same"]["mean_j"] == rows["clp-full"]["mean_j"]


def test_a_run_that_another_process_is_at_is_left_to_it(project, tmp_path, parent):
    root = copied(project, tmp_path)
    run = runs_of(root)[0]
    folder = folders.prepare_run(run, root / "work", root, "abc")
    from clp_lightning.files import locked

    with locked(folder):
        assert worker.work(folder, None, folders.shared_folder(run, root / "work")) == worker.BUSY
        with pytest.raises(BlockingIOError):  # of another commit: not thrown away while a process is at it
            folders.prepare_run(run, root / "work", root, "def")
    assert folders.prepare_run(run, root / "work", root, "abc") == folder
    (folder / "left").touch()
    assert not (folders.prepare_run(run, root / "work", root, "def") / "left").exists()


def test_seeds_that_chose_a_setting_do_not_test_it(project, tmp_path, parent):
    root = copied(project, tmp_path)
    folder, _ = train(root, runs_of(root)[0])
    result = json.loads((folder / "row.json").read_text())
    table.add(root / "runs.csv", result["run"], result["points"], result["axes"])
    (root / "conf/studies/final.yaml").write_text(
        (root / "conf/studies/tiny.yaml").read_text().replace("validation", "test")
    )
    name, study = load_study("final", root)
    with pytest.raises(ClpError, match="seeds: 5 was used by study tiny on the split validation of recipe default"):
        run_study(plan(name, study, root), Place(root, root / "work", root / "runs.csv"), jobs=1, threads=1)


def test_prompts_of_one_group_are_refused_before_anything_is_trained(project, tmp_path, parent):
    root = copied(project, tmp_path)
    folder = folders.shared_folder(runs_of(root)[0], root / "work")
    corpus = folder / "data/corpus/validation.parquet"
    pd.read_parquet(corpus).assign(group="tent").to_parquet(corpus)
    (folder / "done.json").write_text('["corpus"]')
    with pytest.raises(
        ClpError, match=r"evaluation.group: all 8 prompts have the group 'tent', so intervals over groups cannot be had"
    ):
        worker.work(folder, "validation", None)


@pytest.mark.slow
def test_shared_stages_that_fail_are_one_line(tmp_path):
    root = write_project(tmp_path, data__source="lost.csv")
    with pytest.raises(ClpError) as raised:
        run_study(runs_of(root), Place(root, root / "work", root / "runs.csv"), jobs=1, threads=1)
    line = str(raised.value)
    assert (
        line.startswith("the stages that runs of recipe default share failed: ")
        and "lost.csv" in line
        and "\n" not in line
    )


def command(root, *options):
    words = [
        sys.executable,
        "-m",
        "clp_lightning.cli",
        "study",
        "tiny",
        "--jobs",
        "2",
        "--work",
        "work",
        "--table",
        "runs.csv",
    ]
    return subprocess.Popen([*words, *options], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes(root) -> list[int]:
    """The processes that work in a folder of the project."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if entry.resolve().is_relative_to(root / "work"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def until(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_study_that_was_interrupted_continues(project, tmp_path):
    root, undisturbed = copied(project, tmp_path), copied(project, tmp_path / "undisturbed")
    assert command(undisturbed, "--seed", "5").wait(300) == 0
    for how in (signal.SIGKILL, signal.SIGINT):
        first = command(root, "--seed", "5")
        until(lambda: list((root / "work/runs").rglob("last.ckpt")))
        os.kill(first.pid, how)
        first.wait(30)
        until(lambda: not processes(root), 30)  # no worker outlives the command
        assert not table.read(root / "runs.csv").runs
    second = command(root, "--seed", "5")
    assert second.wait(300) == 0, second.stdout.read()
    runs, others = (table.read(folder / "runs.csv").runs for folder in (root, undisturbed))
    assert len(runs) == 2 + 1 and [row["mean_j"] for row in runs] == [row["mean_j"] for row in others]
    assert "3 of 3 done" in command(root, "--seed", "5").communicate(timeout=60)[0]
    assert "tiny | default | validation | does it work" in (root / "ledger.md").read_text()
    for options, shown in ((["--list"], "3 of 6 runs to do"), (["--report"], "3 of 6 runs")):
        assert shown in command(root, *options).communicate(timeout=60)[0]
    assert (root / "tiny.png").is_file()


@pytest.mark.slow
def test_two_commands_share_a_study_and_a_run_that_fails_is_named(project, tmp_path):
    root = copied(project, tmp_path)
    for run in runs_of(root, arm=["soups"], seed=[6]):
        folder = folders.prepare_run(run, root / "work", root, "-")
        (folder / "models/reference").unlink()
        (folder / "models/reference").symlink_to(root / "lost")
    both = [command(root), command(root)]
    said = [each.communicate(timeout=300)[0] for each in both]
    assert any("own/soups x1 seed 6: failed: " in each for each in said), said
    assert "run of study tiny failed, their lines above say why; run it again" in "".join(said)
    assert {each.returncode for each in both} <= {0, 1}
    rows = table.read(root / "runs.csv").runs
    assert len(rows) == 5 and not any(row["arm"] == "soups" and row["seed"] == 6 for row in rows)


def test_the_last_line_of_a_log_is_the_reason(tmp_path):
    (tmp_path / "log").write_text("step 1\nclp: error: rewards.x: broken\n\n")
    assert last_line(tmp_path / "log") == "rewards.x: broken"
