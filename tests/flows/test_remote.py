"""Remote storage: a folder, a bucket on moto's S3 server (`make s3` first), and the champion in a fresh clone."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from locations import REPOSITORY

from clp_lightning.promotion import champion
from flows import remote

S3 = REPOSITORY / ".venv-s3" / "bin" / "python"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": str(REPOSITORY), "CLP_PROJECT": str(REPOSITORY)}
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **paths, **environment}, capture_output=True, text=True, timeout=300
    )


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=cwd, **environment)


def git(*arguments: str, cwd: Path) -> str:
    done = run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def team(smoke, tmp_path) -> Path:
    """A git checkout of the smoke project whose stages count as run, with a champion."""
    folder = Path(shutil.copytree(smoke, tmp_path / "team"))
    config = folder / ".dvc" / "config"
    config.write_text(config.read_text().replace("no_scm = true", ""))
    shutil.copy2(REPOSITORY / ".gitignore", folder)
    shutil.copy2(REPOSITORY / ".dvcignore", folder)
    git("init", "-q", cwd=folder)
    done = python("-m", "dvc", "commit", "--force", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    here = Path.cwd()
    os.chdir(folder)
    try:
        name = champion.identity("clp-full")
        champion.keep(name, "clp-full", Path("results/clp-full"))
        champion.crown(name, "clp-full", "2026-01-01T00:00:00", against=None)
    finally:
        os.chdir(here)
    return folder


def restore_and_generate(team: Path, folder: Path, url: str, endpoint: list[str], **environment: str) -> None:
    """Set the remote, push, commit, clone, pull and generate with the champion."""
    for workspace in (team, folder):
        if workspace is folder:
            git("add", "-A", cwd=team)
            git("commit", "-q", "-m", "trained", cwd=team)
            git("clone", "-q", str(team), str(folder), cwd=team.parent)
            assert not (folder / "models" / "clp-full").exists()
        done = python("-m", "flows.remote", "set", url, *endpoint, cwd=workspace, **environment)
        assert done.returncode == 0, done.stderr
        action = "push" if workspace is team else "pull"
        started = time.monotonic()
        done = python("-m", "flows.remote", action, cwd=workspace, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
    text = ["create bucket: the name", "--model", "champion", "--weighting", "brevity=1"]
    generated = python("-m", "clp_lightning.cli", "generate", *text, cwd=folder)
    assert generated.returncode == 0 and generated.stdout.strip(), generated.stderr
    assert time.monotonic() - started < 60
    assert generated.stdout == python("-m", "clp_lightning.cli", "generate", *text, cwd=team).stdout
    assert (folder / "frontier.duckdb").read_bytes() == (team / "frontier.duckdb").read_bytes()


@pytest.mark.slow
def test_a_fresh_clone_gets_the_champion_from_a_folder(team, tmp_path):
    restore_and_generate(team, tmp_path / "clone", str(tmp_path / "storage"), [])


@pytest.mark.slow
def test_a_fresh_clone_gets_the_champion_from_a_bucket(team, tmp_path):
    if not S3.exists():
        pytest.fail("no .venv-s3; run `make s3` (as `make slow` does)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = subprocess.Popen(
        [str(S3), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **credentials},
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    bucket = f"import boto3; boto3.client('s3', endpoint_url='{endpoint}').create_bucket(Bucket='clp')"
    try:
        for _ in range(60):
            made = run(str(S3), "-c", bucket, cwd=tmp_path, **credentials)
            if made.returncode == 0:
                break
            time.sleep(0.5)
        assert made.returncode == 0, made.stderr
        restore_and_generate(
            team, tmp_path / "clone", "s3://clp/artefacts", ["--endpoint", endpoint], **credentials
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(20)
    # a bucket that nothing answers for, or without credentials: one line, and nothing here has changed
    before = (team / "models" / "champion.json").read_text()
    for action in ("push", "pull"):
        done = python("-m", "flows.remote", action, cwd=team, AWS_EC2_METADATA_DISABLED="true", HOME=str(tmp_path))
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"error: dvc {action}: ") and "Unable to locate credentials" in done.stderr
    assert (team / "models" / "champion.json").read_text() == before


def test_without_a_remote_it_says_how_to_set_one(toy_pipeline):
    project = toy_pipeline("stages: {a: {cmd: 'echo a > a.txt', outs: [a.txt]}}")
    assert remote.url(project) is None
    done = python("-m", "flows.remote", "push", cwd=project)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no remote is set; name one with `make remote URL=...`" in done.stderr


def test_a_bucket_without_its_environment_says_what_to_install(toy_pipeline, tmp_path):
    project = toy_pipeline("stages: {a: {cmd: 'echo a > a.txt', outs: [a.txt]}}")
    done = python("-m", "flows.remote", "set", "s3://clp/x", cwd=project)
    assert done.returncode == 0, done.stderr
    assert remote.url(project) == "s3://clp/x"
    done = python("-m", "flows.remote", "push", cwd=project, CLP_PROJECT=str(tmp_path))
    assert done.returncode == 1 and "`make s3`" in done.stderr and done.stderr.count("\n") == 1


def test_outside_of_a_project(tmp_path):
    done = python("-m", "flows.remote", "set", str(tmp_path / "x"), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
