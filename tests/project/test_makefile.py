"""`make`: every target is explained, and set-up that was interrupted or cannot work is never taken for done."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clp_lightning.store.queries import Store

BACKEND = """
import pathlib, zipfile
def build_editable(folder, settings=None, metadata=None):
    name, info = "toy-1-py3-none-any.whl", "toy-1.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nGenerator: toy\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def project(tmp_path, repository) -> Path:
    """The Makefile with a package that needs nothing, so that set-up is real but takes seconds and no network."""
    shutil.copy2(repository / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("# none\n")
    (tmp_path / "assets.lock").write_text("# none\n")
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "toy"\nversion = "1"\n'
    )
    return tmp_path


def outside() -> dict[str, str]:
    """The environment, but for `make test`'s own level and flags, which are not for the make under test."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**outside(), "PIP_NO_INDEX": "1", "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_explains_every_target(repository):
    targets = re.search(r"^\.PHONY: (.*)$", (repository / "Makefile").read_text(), re.MULTILINE).group(1).split()
    listed = {line.split()[0]: line.split()[1:] for line in make(repository, "help").stdout.splitlines()}
    assert list(listed) == targets
    assert all(listed.values())
    assert {"setup", "repro", "test", "lint", "dashboard", "server", "deploy", "clean", "help"} <= set(targets)
    assert make(repository).stdout == make(repository, "help").stdout


@pytest.mark.slow
def test_interrupted_set_up_starts_afresh_and_a_finished_one_is_not_repeated(project):
    stamp = project / ".venv" / ".set-up"
    (project / "requirements.lock").write_text("no-such-package-here==1\n")
    failed = make(project, "setup")
    assert failed.returncode != 0 and "no-such-package-here" in failed.stderr
    assert not stamp.exists()
    (project / ".venv" / "half-installed").touch()

    (project / "requirements.lock").write_text("# none\n")
    done = make(project, "setup")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "setup: creating .venv with Python 3." in done.stdout and "setup: done in" in done.stdout
    assert stamp.exists() and not (project / ".venv" / "half-installed").exists()

    assert "setup:" not in make(project, "setup").stdout
    (project / "assets.lock").write_text("# changed\n")
    again = make(project, "setup").stdout
    assert "setup: installing" in again and "creating" not in again


def test_set_up_without_a_suitable_python_is_one_line(project, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("make", "bash", "rm", "touch", "grep"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    (tools / "python3").symlink_to("/bin/false")
    failed = make(project, "setup", PATH=str(tools), PYTHON="")
    assert failed.returncode != 0
    problems = [line for line in failed.stderr.splitlines() if not line.startswith("make: ***")]
    assert problems == [
        "make setup: needs Python 3.11 or newer with venv; install it or name it: make setup PYTHON=/path/to/python3.11"
    ]
    assert not (project / ".venv").exists()


@pytest.mark.slow
def test_a_method_that_fails_is_named_and_the_others_are_published(repository, tmp_path):
    if not (repository / ".venv" / ".set-up").is_file():
        pytest.skip("`make setup` has not been run here")
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=repository, text=True).split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(repository / ".venv")
    workspace = tmp_path / "build" / "smoke"
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            ["make", "repro", "RECIPE=smoke"], cwd=tmp_path, env=outside(), stdout=log, stderr=log
        )
        while running.poll() is None and not (found := stages(workspace, "train --method rewarded-soups")):
            time.sleep(0.1)
        found[0].kill()
        assert running.wait(timeout=300) == 2
    said = (tmp_path / "log").read_text()
    assert "ERROR: failed to reproduce 'train@rewarded-soups'" in said
    assert "left out of the comparison: results/rewarded-soups/results.parquet is missing" in said
    assert "make repro: a method failed, its lines above say why; the others are published." in said
    store = Store(workspace / "frontier.duckdb")
    assert set(store.points(store.run()["run_id"]).method) == {"reference", "clp-full"}


def stages(workspace: Path, ending: str) -> list[psutil.Process]:
    """Processes of a stage of this workspace, without the shell DVC runs it in (dash waits for it, bash becomes it)."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = ["stage", *ending.split()]
        if process.info["cwd"] == str(workspace) and (process.info["cmdline"] or [])[-len(words) :] == words:
            found.append(process)
    return found


def test_unknown_recipe_is_one_line(repository):
    failed = make(repository, "repro", "RECIPE=nosuch")
    assert "error: recipe 'nosuch': no such file conf/nosuch.yaml; recipes here: arena, assistant, " in failed.stderr
    assert not (repository / "build" / "nosuch").exists()


def test_the_recipe_smollm2_is_the_default_run(repository):
    default, named = make(repository, "-n", "repro").stdout, make(repository, "-n", "repro", "RECIPE=smollm2").stdout
    assert "flows.dvc_state" in default and named == default
    assert make(repository, "-n", "repro", "RECIPE=smoke").stdout != default


def test_locks_name_exact_versions_and_no_host(repository):
    for name in ("requirements.lock", "assets.lock"):
        lines = [line for line in (repository / name).read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines), name
    lock = (repository / "requirements.lock").read_text().replace("_", "-").splitlines()
    pinned = dict(line.split("==") for line in lock[1:])
    declared = re.findall(r'^  "([a-z-]+)==([0-9.]+)"', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert {name: pinned.get(name) for name, _ in declared} == dict(declared)
