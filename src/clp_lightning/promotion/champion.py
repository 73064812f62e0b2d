"""The policy in use: `models/champion.json`, the policies that were considered (`models/kept/ID`), promotion and rollback.

A kept policy is complete: `ID/METHOD` as the pipeline wrote it, `ID/reference` that it steers, `ID/results` of its evaluation.
Nothing there is ever changed, so that files are links to the pipeline's where the file system has them.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from clp_lightning.config.methods import REFERENCE
from clp_lightning.errors import ClpError, UsageError, make
from clp_lightning.files import atomic, fingerprint, locked, read_json, write_json
from clp_lightning.paths import CHAMPION, KEPT, MODELS

# history: ids of earlier champions, the last one last. rolled_back: ids that people took back.
KEYS = {"id", "method", "promoted_at", "history"}


def identity(method: str) -> str:
    """Return the fingerprint of a method's parameters and of the reference policy that they steer."""
    for name in (method, REFERENCE):
        if not (MODELS / name).is_dir():
            raise ClpError(f"{MODELS / name} does not exist; run {make('repro')} to train it")
    return fingerprint(MODELS / method, MODELS / REFERENCE)


def keep(name: str, method: str, results: Path) -> None:
    """Keep a policy and its results under its `identity`; one that is kept already stays as it is."""
    if not (KEPT / name).is_dir():
        with atomic(KEPT / name) as beside:
            for part in (method, REFERENCE):
                shutil.copytree(MODELS / part, beside / part, copy_function=_link)
            shutil.copytree(results, beside / "results", copy_function=_link)


def current() -> dict[str, Any] | None:
    """Return the champion's entry, None before the first promotion; raises `ClpError` when the file or its policy is broken."""
    if not CHAMPION.exists():
        return None
    remedy = "restore it, or delete it to start over with the next policy"
    entry = read_json(CHAMPION, remedy=remedy)
    if not isinstance(entry, dict) or not entry.keys() >= KEYS or not isinstance(entry["history"], list):
        raise ClpError(f"{CHAMPION}: expected the keys {', '.join(sorted(KEYS))}; {remedy}")
    _check_kept(entry["id"], entry["method"])
    return entry


def folder() -> Path:
    """Return the champion's policy folder; raises `UsageError` before the first promotion."""
    entry = current()
    if entry is None:
        raise UsageError(
            f"there is no champion yet; `clp promote` makes one of the policy that {make('repro')} trained"
        )
    return KEPT / entry["id"] / entry["method"]


def resolve(model: Path) -> Path:
    """Return `model` itself, or the champion's folder for the word `champion`."""
    return folder() if model == Path("champion") and not model.exists() else model


def crown(name: str, method: str, when: str, *, against: str | None) -> None:
    """Make a kept policy the champion in the place of `against`; `when` is the time in ISO format.

    Raises `ClpError` when somebody made another policy the champion in the meantime: the decision was not about that one.
    """
    with locked(MODELS):  # read, changed and written by one process at a time: a rollback beside it is never lost
        before = current()
        if (None if before is None else before["id"]) != against:
            raise ClpError(f"{CHAMPION}: the champion changed while this was decided; run `clp promote` again")
        history = [] if before is None else [*before["history"], before["id"]]
        entry = {"id": name, "method": method, "promoted_at": when, "history": history}
        write_json(CHAMPION, entry | {"rolled_back": rolled_back(before)})


def rollback(when: str) -> dict[str, Any]:
    """Make the champion's predecessor the champion again and return its entry; raises `UsageError` when there is none.

    The policy that was taken back is not promoted again: the next scheduled run finds it still trained.
    """
    with locked(MODELS):
        now = current()
        if now is None or not now["history"]:
            raise UsageError(f"{CHAMPION}: there is no earlier champion to go back to")
        *history, name = now["history"]
        method = _method_of(name)
        _check_kept(name, method)
        entry = {"id": name, "method": method, "promoted_at": when, "history": history}
        entry |= {"rolled_back": [*rolled_back(now), now["id"]]}
        write_json(CHAMPION, entry)
    return entry


def rolled_back(entry: dict[str, Any] | None) -> list[str]:
    """Return the ids that people took back; none before the first champion, nor in files of older versions."""
    return [] if entry is None else entry.get("rolled_back", [])


def forget(names: set[str]) -> None:
    """Take policies that are about to be removed out of the champion's history."""
    with locked(MODELS):
        _forget(names)


def _forget(names: set[str]) -> None:
    entry = current()
    if entry is not None and names & set(entry["history"]):
        write_json(CHAMPION, entry | {"history": [name for name in entry["history"] if name not in names]})


def _method_of(name: str) -> str:
    summary = read_json(KEPT / name / "results" / "summary.json", remedy="its folder is damaged; choose another policy")
    return str(summary["method"])


def _check_kept(name: str, method: str) -> None:
    if not (KEPT / name / method / "clp.json").is_file():
        raise ClpError(
            f"{CHAMPION}: its policy {KEPT / name / method} is missing; restore the folder or delete the file"
        )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
