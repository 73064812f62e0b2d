"""A workspace: a folder in which a recipe runs through the same pipeline.

`python -m clp_lightning.project.workspace smoke build/smoke` prepares one; `dvc repro` in it runs it. Workspaces share code but
neither data, models, nor DVC cache, so that a trial run never disturbs the default one.
"""

import shutil
import sys
from pathlib import Path

from clp_lightning.config.recipes import HEAD, compose
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.files import atomic
from clp_lightning.project.dvc_yaml import write_pipeline, write_text


def prepare(recipe: str, folder: Path | str, *, root: Path | str = ".") -> Path:
    """Make `folder` a DVC project that runs a recipe (`conf/RECIPE.yaml`) with the pipeline of the project at `root`.

    Files that are already there and up to date stay as they are, and so do results: preparing twice reruns nothing.
    """
    root, folder = Path(root), Path(folder)
    if folder.exists() and not (folder / ".dvc" / "config").is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder}: not empty and not a workspace; name another folder")
    if folder.resolve() == root.resolve():
        raise UsageError(f"{folder}: this is the project itself; name another folder")
    written = folder / "params.yaml"
    if written.is_file() and not written.read_text(encoding="utf-8").startswith(HEAD):
        raise UsageError(
            f"{folder}: its params.yaml is not of a recipe, but somebody's own; name another folder, or remove it"
        )
    config, parameters = compose(recipe, root)
    settings = (root / ".dvc" / "config").read_text(encoding="utf-8")
    # no_scm: a workspace lies in a folder that git ignores, or outside of any repository
    write_text(folder / ".dvc" / "config", settings.replace("[core]\n", "[core]\n    no_scm = true\n", 1))
    write_text(folder / "params.yaml", parameters)
    write_pipeline(root / "dvc.yaml", folder / "dvc.yaml", config)
    with atomic(folder / "src") as beside:  # DVC hashes the code; what runs is the installed package
        shutil.copytree(root / "src", beside, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def main(arguments: list[str]) -> int:
    """Prepare the workspace that the command line names; one line and exit code 2 for wrong use."""
    if len(arguments) != 2:
        print("usage: python -m clp_lightning.project.workspace RECIPE FOLDER", file=sys.stderr)
        return 2
    try:
        prepare(*arguments)
    except ClpError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
