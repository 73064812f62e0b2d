"""Workspaces: another parameter file through the same pipeline, in a folder of its own."""

import shutil
import subprocess
import sys

import pytest
from locations import recipe_values
from ruamel.yaml import YAML

from clp_lightning.errors import UsageError
from clp_lightning.project.workspace import prepare


@pytest.fixture
def project(tmp_path, repository):
    """A copy of what a workspace is made from, so that a test can change it."""
    root = tmp_path / "project"
    for name in ("conf", "params.yaml", "src/clp_lightning", ".dvc/config", "dvc.yaml"):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (repository / name).is_dir() else shutil.copy2)(repository / name, target)
    return root


def test_workspace_has_the_recipe_the_pipeline_and_the_code(project, tmp_path):
    folder = prepare("smoke", tmp_path / "w", root=project)
    assert YAML(typ="safe").load(folder / "params.yaml") == recipe_values("smoke")
    assert (folder / "dvc.yaml").read_bytes() == (project / "dvc.yaml").read_bytes()
    assert (folder / "src" / "clp_lightning" / "config" / "parameters.py").is_file()
    assert not list(folder.rglob("__pycache__"))


def test_preparing_again_keeps_results_and_follows_the_code(project, tmp_path):
    folder = prepare("smoke", tmp_path / "w", root=project)
    (folder / "models").mkdir()
    pipeline_before = (folder / "dvc.yaml").stat().st_mtime_ns
    (project / "src" / "clp_lightning" / "errors.py").unlink()
    (project / "src" / "clp_lightning" / "added.py").touch()
    prepare("smoke", folder, root=project)
    assert (folder / "models").is_dir()
    assert (folder / "dvc.yaml").stat().st_mtime_ns == pipeline_before
    assert (folder / "src" / "clp_lightning" / "added.py").exists()
    assert not (folder / "src" / "clp_lightning" / "errors.py").exists()


def test_last_stage_reads_the_methods_of_the_recipe(project, tmp_path):
    (project / "conf" / "other.yaml").write_text(
        "replace: [methods]\npromotion: {method: clp-attention}\nmethods:\n  clp-attention: {conditioning: attention,"
        " shared: true, prompted: false, weightings: {kind: vertices}}\n"
    )
    folder = prepare("other", tmp_path / "w", root=project)
    deps = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]["publish"]["deps"]
    assert [dep for dep in deps if dep.startswith("results/")] == ["results/reference", "results/clp-attention"]
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--names-only"], cwd=folder, capture_output=True, text=True
    )
    assert "train@clp-attention" in listed.stdout.split()


def test_unknown_recipe_names_those_that_exist(project, tmp_path):
    with pytest.raises(UsageError, match=r"recipe 'nosuch': no such file .*; recipes here: arena, assistant, .*smoke"):
        prepare("nosuch", tmp_path / "w", root=project)


def test_recipe_is_checked_before_anything_is_written(project, tmp_path):
    (project / "conf" / "bad.yaml").write_text("seed: -1\n")
    with pytest.raises(UsageError, match=r"conf/bad.yaml: seed: .*-1"):
        prepare("bad", tmp_path / "w", root=project)
    assert not (tmp_path / "w").exists()


def test_folder_with_something_else_in_it_is_left_alone(project, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="not empty and not a workspace"):
        prepare("smoke", tmp_path / "w", root=project)
    with pytest.raises(UsageError, match="this is the project itself"):
        prepare("smoke", project, root=project)


@pytest.mark.parametrize(("arguments", "status"), [(["smoke"], 2), (["nosuch", "w"], 2), (["smoke", "w"], 0)])
def test_command_line(project, tmp_path, arguments, status):
    arguments = [str(tmp_path / "w") if argument == "w" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "clp_lightning.project.workspace", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == (status != 0)
