"""Fixtures that several test modules share; nothing here imports torch, so that pure tests stay fast."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports the libraries that read these.
os.environ["HF_HUB_OFFLINE"] = "1"  # models come from installed packages; an attempt to download is an error
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "2")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


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
