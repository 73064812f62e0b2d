"""What DVC leaves behind when it is killed while it writes, put right: `python -m flows.dvc_state [WORKSPACE]`.

DVC writes `dvc.lock`, and the list of its locks (`rwlock`), in place. A kill in that moment leaves an empty or cut file, and
every later command fails (found by `bench.soak`). So the last good `dvc.lock` is kept, and comes back when the present
one cannot be read: the stages that it does not know yet run again, or come out of DVC's run cache.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clp_lightning.files import atomic

PATIENCE = 1.0  # seconds between two looks: another DVC may be in the middle of writing


def keep(workspace: Path) -> None:
    """Remember the workspace's `dvc.lock` if it is whole."""
    lock = workspace / "dvc.lock"
    if lock.is_file() and _whole(lock):
        with atomic(_kept(workspace)) as beside:
            shutil.copyfile(lock, beside)


def heal(workspace: Path) -> list[str]:
    """Replace what is broken, and return a line about each; nothing when all is well."""
    lock, kept, told = workspace / "dvc.lock", _kept(workspace), []
    if lock.is_file() and _stays(lock, lambda: not _whole(lock)):
        if kept.is_file() and _whole(kept):
            with atomic(lock) as beside:
                shutil.copyfile(kept, beside)
            told.append(f"{lock} was cut short by a kill: the copy from before it is back")
        else:
            lock.unlink()
            told.append(f"{lock} was cut short by a kill and there is no copy: every stage is looked at anew")
    rwlock = workspace / ".dvc" / "tmp" / "rwlock"
    if rwlock.is_file() and _stays(rwlock, lambda: not _json(rwlock)):
        rwlock.unlink(missing_ok=True)
        told.append(f"{rwlock} was cut short by a kill: removed")
    return told


def _kept(workspace: Path) -> Path:
    return workspace / ".dvc" / "tmp" / "dvc.lock.kept"


def _stays(path: Path, broken: Callable[[], bool]) -> bool:
    if not broken():
        return False
    time.sleep(PATIENCE)
    return path.is_file() and broken()


def _whole(lock: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, YAMLError, Invalid):
        return False
    return True


def _json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def main(arguments: list[str]) -> int:
    """Heal the workspace that the command line names, the current folder by default; exit code 2 for what is no folder."""
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_dir()):
        print("usage: python -m flows.dvc_state [WORKSPACE], a folder with a dvc.yaml", file=sys.stderr)
        return 2
    for line in heal(Path(arguments[0] if arguments else ".")):
        print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
