"""What the process of one run does, and that of the stages which runs share.

`python -m clp_lightning.study.worker share FOLDER SPLIT`, or `... run FOLDER SHARED`: `clp study` starts it.
"""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any

from clp_lightning import paths
from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config, load_config
from clp_lightning.errors import ClpError
from clp_lightning.files import fingerprint, locked, read_json, write_json
from clp_lightning.study import folders
from clp_lightning.study.table import KEY

BUSY = 75  # exit status: another process has this folder (EX_TEMPFAIL)


def work(folder: Path, split: str | None, shared: Path | None) -> int:
    """Do what a folder is for: the shared stages, for the evaluation on `split`, or the run that links to `shared`.

    Returns the exit status: 0, or `BUSY` when another process is at it.
    """
    if not sys.stdin.isatty():
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with locked(folder, wait=shared is None), contextlib.chdir(folder):
            config = load_config()
            if shared is None:
                share(config, split or "test")
            else:
                run(config, read_json(folders.SPEC, remedy=f"delete {folder}"), shared)
    except BlockingIOError:
        return BUSY
    return 0


def share(config: Config, split: str) -> None:
    """Run the shared stages that are not done yet, in the current folder."""
    from clp_lightning.evaluation.prompts import draw_prompts
    from clp_lightning.evaluation.results import evaluate_into
    from clp_lightning.pipeline import stages

    here = Path(".")
    if config.compute.dtype == "auto" and not Path(folders.PRECISION).is_file():
        from clp_lightning.policy.loading import chosen_device, hardware_dtype

        kind = chosen_device(config.compute.device).type
        write_json(folders.PRECISION, str(hardware_dtype(kind)).removeprefix("torch."))
    config = folders.in_precision(config, here)
    for stage, of in folders.stages(config, split):
        name = folders.stage_name(stage, of)
        if name in (finished := folders.done(here)):
            continue
        if stage == "base":
            draw_prompts(config, split)  # prompts of one group are refused before anything is trained
        if stage == "evaluate":
            out = paths.RESULTS / f"{REFERENCE}-{split}"
            evaluate_into(config, REFERENCE, paths.MODELS, out, draw_prompts(config, split))
        else:
            stages.run(stage, config, reward=of)
        write_json(folders.DONE, [*finished, name])


def run(config: Config, spec: dict[str, Any], shared: Path) -> None:
    """Train and evaluate the run of the current folder, and write its rows."""
    from clp_lightning.evaluation.prompts import draw_prompts
    from clp_lightning.evaluation.results import evaluate_into
    from clp_lightning.pipeline import stages
    from clp_lightning.study import measure

    arm, split = spec["arm"], spec["split"]
    derived = config.derived.get(arm)
    if derived is None and not (paths.MODELS / arm / paths.CARD).is_file():
        stages.run("train", config, arm)
    if not (paths.RESULTS / arm / "summary.json").is_file():
        evaluate_into(config, arm, paths.MODELS, paths.RESULTS / arm, draw_prompts(config, split))
    axes = measure.axes(config, split, shared / paths.RESULTS / f"{REFERENCE}-{split}")
    name = fingerprint([spec[key] for key in (*KEY, "config")])[:12]
    values, points = measure.rows(config, arm, axes, paths.RESULTS / arm, name)
    summary = read_json(paths.RESULTS / arm / "summary.json", remedy="delete this folder")
    cost = summary["cost"]
    on = dict.fromkeys((cost["computed_on"], summary["computed_on"]))  # the training, the evaluation
    seconds = cost["evaluate_seconds"] + (0 if derived else cost["train_seconds"])
    row = {
        **spec,
        "run": name,
        "learning_rate": config.training.learning_rate,
        "gradient_clip": config.training.gradient_clip,
        **values,
        **measure.training(paths.MODELS, derived.of if derived else arm, config.training.gradient_clip),
        "version": importlib.metadata.version("clp-lightning"),
        "machine": _processor(),
        "computed_on": "; ".join(on),
        "seconds": round(seconds, 1),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    write_json(folders.RESULT, {"run": row, "points": points, "axes": axes})


def _processor() -> str:
    """Return the processor's name and its cores; a host's name would say who ran it, not what did."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name} x {os.cpu_count()}"


def _end_with_parent() -> None:
    """End this process when its standard input does: none outlives the command that started it."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Do the work that the command line names; what is wrong is one line, the last of the log."""
    what, folder, of = arguments
    try:
        return work(Path(folder), *((of, None) if what == "share" else (None, Path(of))))
    except ClpError as error:
        print(f"clp: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
