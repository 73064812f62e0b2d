"""Where the runs of studies lie: shared stages once per set of settings, and a folder per run that links to them.

WORK/shared/RECIPE-HASH/   params.yaml, data/, models/ (base, reference, learned rewards), results/ (reference)
WORK/runs/STUDY/PANEL/ARM/xBUDGET-seedSEED-HASH/   params.yaml, run.json, log.txt, models/ARM, results/ARM, row.json
(a run that trains nothing links to the policy of the run that did)
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError
from clp_lightning.files import atomic, locked, read_json, write_json
from clp_lightning.project.dvc_yaml import own_files
from clp_lightning.study.runs import Run, parameters

SPEC, RESULT, LOG, DONE, PRECISION = "run.json", "row.json", "log.txt", "done.json", "precision.json"


def shared_folder(run: Run, work: Path) -> Path:
    """Return the folder of what a run shares with others."""
    return work / "shared" / f"{run.recipe}-{run.shared_hash}"


def run_folder(run: Run, work: Path) -> Path:
    """Return a run's own folder."""
    name = f"x{run.budget:g}-seed{run.seed}-{run.config_hash[:8]}"
    return work / "runs" / run.study / run.panel / run.arm / name


def prepare_shared(run: Run, work: Path, root: Path) -> Path:
    """Make the folder in which the shared stages run, with the user's own files that they read; return it."""
    folder = shared_folder(run, work)
    for name in own_files(run.config, root):
        _link(root / name, folder / name)
    _write_parameters(run.config, folder)  # again: another version may have written keys that this one does not know
    return folder


def prepare_run(run: Run, work: Path, root: Path, commit: str) -> Path:
    """Make a run's folder, or take up one that was interrupted; return it.

    What an interrupted run of another commit left is thrown away: a training has one version of the code. Raises
    `BlockingIOError` when a process is at it.
    """
    folder, shared = run_folder(run, work), shared_folder(run, work)
    spec = {
        "study": run.study, "panel": run.panel, "arm": run.arm, "budget": run.budget, "seed": run.seed, "recipe": run.recipe,
        "method": run.method, "split": run.split, "settings": run.settings, "config": run.config_hash[:12],
        "rollouts": run.rollouts, "commit": commit,
    }  # fmt: skip
    if run.trained is not None:  # when its policy is trained anew, its answers are others
        spec["trained"] = _row(run.trained, work)["date"]
    if _spec(folder) == spec:
        return folder
    with locked(folder, wait=False):
        shutil.rmtree(folder)
    for name in own_files(run.config, root):
        _link(root / name, folder / name)
    models = [paths.MODELS / name for name in ("base", "reference", *run.config.reward_models)]
    for path in (paths.CORPUS, paths.NORMALIZATION, *models):
        _link(shared / path, folder / path)
    if run.trained is not None:
        policy = paths.MODELS / run.trained.arm
        _link(run_folder(run.trained, work) / policy, folder / policy)
    _write_parameters(in_precision(run.config, shared), folder)
    write_json(folder / SPEC, spec)
    return folder


def check_trained(run: Run, work: Path, row: Mapping[str, Any]) -> None:
    """Raise `ClpError` unless the policy of a run with this row of the table is still in its folder."""
    folder = run_folder(run, work)
    policy = folder / paths.MODELS / run.arm / paths.CARD
    if not policy.is_file() or _row(run, work).get("date") != row["date"]:
        raise ClpError(
            f"the policy of {run.name} is not in {folder}; delete that run's row and run it again, or name its folder with --work"
        )


def stages(config: Config, split: str) -> Iterator[tuple[str, str | None]]:
    """Yield the shared stages in order, each with the reward or, of the evaluation, the split that it is for."""
    yield from ((name, None) for name in ("corpus", "base", "sft"))
    for reward in config.reward_models:
        yield from (("pairs", reward), ("reward_model", reward))
    yield "normalization", None
    yield "evaluate", split


def done(folder: Path) -> list[str]:
    """Return the shared stages that were finished in a folder."""
    return list(read_json(folder / DONE, remedy=f"delete {folder}")) if (folder / DONE).is_file() else []


def is_shared(folder: Path, config: Config, split: str) -> bool:
    """Whether all shared stages were finished."""
    finished = done(folder)
    return all(stage_name(*stage) in finished for stage in stages(config, split))


def stage_name(stage: str, of: str | None) -> str:
    """Return a stage's name as `done` has it."""
    return stage if of is None else f"{stage}@{of}"


def in_precision(config: Config, shared: Path) -> Config:
    """Return the configuration with the precision that the shared stages had, in place of `auto`.

    `auto` measures which one is faster, each time: beside other runs the answer may differ, and so would the runs.
    """
    if config.compute.dtype != "auto":
        return config
    chosen = read_json(shared / PRECISION, remedy=f"delete {shared}")
    return config.model_copy(update={"compute": config.compute.model_copy(update={"dtype": chosen})})


def _write_parameters(config: Config, folder: Path) -> None:
    with atomic(folder / "params.yaml") as beside:
        beside.write_text(parameters(config), encoding="utf-8")


def _spec(folder: Path) -> Any:
    return _read(folder / SPEC)


def _row(run: Run, work: Path) -> dict[str, Any]:
    """Return the row that a run left in its folder; empty when there is none."""
    return (_read(run_folder(run, work) / RESULT) or {}).get("run", {})


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _link(source: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    except OSError as error:
        raise ClpError(f"cannot link {target}: {error.strerror}; name another folder with --work") from error
