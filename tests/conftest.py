"""Fixtures that several test modules share; nothing here imports torch, so that pure tests stay fast."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from locations import REPOSITORY

# Before anything imports the libraries that read these.
os.environ["HF_HUB_OFFLINE"] = "1"  # models come from installed packages; an attempt to download is an error
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault(
    "GOMP_SPINCOUNT", "10000"
)  # as `clp` does: beside another job, spinning threads slow a test fortyfold


# A deadline in milliseconds measures the machine, not the code: the first call of a torch function may take half a second.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(autouse=True)
def _main_module() -> Iterator[None]:
    """Put `__main__` back: AppTest leaves the dashboard's script there, and a process spawned later would run it."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture
def toy_pipeline(tmp_path: Path) -> Callable[[str], Path]:
    """Make a DVC project of its own from the text of a dvc.yaml."""

    def make(dvc_yaml: str) -> Path:
        folder = tmp_path / "toy"
        (folder / ".dvc").mkdir(parents=True)
        (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        (folder / "dvc.yaml").write_text(dvc_yaml)
        return folder

    return make


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with synthetic results and the store that was published from them; not to be changed."""
    from results_factory import config, write_results

    from clp_lightning.store.queries import publish

    folder = tmp_path_factory.mktemp("published")
    write_results(folder / "results", config())
    publish(folder / "results", folder / "frontier.duckdb", config())
    return folder


@pytest.fixture
def project(published: Path, tmp_path: Path) -> Path:
    """A copy of `published` that a test may change."""
    return Path(shutil.copytree(published, tmp_path / "project"))


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A finished run of the recipe smoke, every stage in this process; not to be changed."""
    from clp_lightning.config.parameters import load_config
    from clp_lightning.pipeline import stages
    from clp_lightning.project.workspace import prepare

    folder = prepare("smoke", tmp_path_factory.mktemp("smoke") / "project", root=repository)
    config, here = load_config(folder / "params.yaml"), Path.cwd()
    os.chdir(folder)
    try:
        for name in ("corpus", "base", "sft"):
            stages.run(name, config)
        for reward in config.reward_models:
            stages.run("pairs", config, reward=reward)
            stages.run("reward_model", config, reward=reward)
        stages.run("normalization", config)
        for method in config.methods:
            stages.run("train", config, method)
        for method in config.compared:
            stages.run("evaluate", config, method)
        stages.run("publish", config)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="session")
def steered(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run with experts that change the text; not to be changed."""
    from tiny_models import strengthen

    folder = Path(shutil.copytree(smoke, tmp_path_factory.mktemp("steered") / "project", symlinks=True))
    strengthen(folder / "models" / "clp-full")
    return folder
