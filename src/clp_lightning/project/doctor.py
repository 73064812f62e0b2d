"""`clp doctor`: what this machine and this project lack, each with its remedy. It changes nothing."""

import functools
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from clp_lightning.config.data import Pretrained
from clp_lightning.config.parameters import Config, load_config
from clp_lightning.config.training import CustomLoss
from clp_lightning.errors import ClpError, make, plural
from clp_lightning.files import read_json

GIGABYTE = 1_000_000_000
DISK, MEMORY = 4 * GIGABYTE, 3 * GIGABYTE  # the default run: models, caches of DVC; its largest stage
PORTS = {4200: "the Prefect server", 8501: "the dashboard"}


class Finding(NamedTuple):
    """One thing that was looked at: `problem` hinders the pipeline, `note` only what it names; `remedy` is empty for `ok`."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def examine(params: Path) -> Iterator[Finding]:
    """Yield one finding per check, cheap ones first; a check that fails itself is a problem, never an exception."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python, "packages": _packages, "disk": _disk, "memory": _memory, "processor": _processor, "gpu": _gpu,
        **{f"port {port}": functools.partial(_port, port) for port in PORTS}, "prefect": _prefect,
    }  # fmt: skip
    try:
        config = load_config(params)
        yield Finding("parameters", "ok", f"{params}: {', '.join(config.objectives)}; {', '.join(config.compared)}")
        checks |= {"assets": functools.partial(_assets, config, params.parent), "models": _models, "store": _store}
        checks |= {"losses": functools.partial(_losses, config, params.parent)} if _own_losses(config) else {}
    except ClpError as error:
        yield Finding("parameters", "problem", str(error), "correct the file, or run in a project folder")
    for name, check in checks.items():
        try:
            yield check()
        except ClpError as error:
            wrong, _, remedy = str(error).rpartition("; ")
            yield Finding(name, "problem", wrong, remedy)
        except Exception as error:  # a doctor that dies helps nobody
            yield Finding(name, "problem", f"{type(error).__name__}: {error}", "report this with the line above")


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Finding:
    lock = Path("requirements.lock")
    if not lock.is_file():
        return Finding(
            "packages", "ok", f"clp-lightning {importlib.metadata.version('clp-lightning')}; no lock file here"
        )
    wanted = dict(line.split("==", 1) for line in lock.read_text().splitlines() if "==" in line and line[0] != "#")
    other = []
    for name, version in wanted.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed.split("+")[0] != version.split("+")[0]:
            other.append(f"{name} {installed} (lock: {version})")
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return Finding(
            "packages",
            "problem",
            ", ".join(other[:3]) + more,
            f"run {make('setup', 'pip install -r requirements.lock')}, and commands from .venv/bin",
        )
    return Finding("packages", "ok", f"all {len(wanted)} as in requirements.lock")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    found = f"{free / GIGABYTE:.0f} GB free here"
    if free < DISK:
        return Finding(
            "disk", "problem", found, f"free {DISK // GIGABYTE} GB; `clp prune` and `dvc gc` remove old runs"
        )
    return Finding("disk", "ok", found)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{total / GIGABYTE:.0f} GB"
    if total < MEMORY:
        return Finding(
            "memory",
            "problem",
            found,
            f"the default run needs {MEMORY // GIGABYTE} GB; lower training.prompts_per_step",
        )
    return Finding("memory", "ok", found)


def _processor() -> Finding:
    import torch

    from clp_lightning.policy.loading import hardware_dtype

    precision = str(hardware_dtype()).removeprefix("torch.")
    found = f"{plural(os.cpu_count() or 1, 'core')}, {torch.backends.cpu.get_cpu_capability()}, computes in {precision}"
    return Finding("processor", "ok", found)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("gpu", "ok", torch.cuda.get_device_name(0))
    return Finding("gpu", "note", "none that torch can use", "none is needed; for one, install a CUDA build of torch")


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if taken:
        remedy = f"fine if that is {PORTS[port]}; else use another port (PREFECT_PORT, --server.port)"
        return Finding(f"port {port}", "note", "something listens there", remedy)
    return Finding(f"port {port}", "ok", f"free, for {PORTS[port]}")


def _assets(config: Config, root: Path) -> Finding:
    from clp_lightning.paths import resolve

    wanted = [config.encoder, *(model.encoder for model in config.reward_models.values())]
    wanted += [config.base.model] if isinstance(config.base, Pretrained) else []
    for name in dict.fromkeys(wanted):
        try:
            resolve(name, root)
        except ClpError as error:
            found, _, remedy = str(error).rpartition("; ")
            return Finding("assets", "problem", found, remedy)
    return Finding("assets", "ok", ", ".join(dict.fromkeys(wanted)))


def _own_losses(config: Config) -> dict[str, CustomLoss]:
    return {name: row.loss for name, row in config.methods.items() if isinstance(row.loss, CustomLoss)}


def _losses(config: Config, root: Path) -> Finding:
    from clp_lightning.training.method_losses import build_loss

    own = _own_losses(config)
    for name, loss in own.items():
        try:
            build_loss(loss, root)
        except ClpError as error:
            raise ClpError(f"methods.{name}: {error}") from error
    return Finding("losses", "ok", ", ".join(loss.function for loss in own.values()))


def _models() -> Finding:
    cards = sorted(Path("models").glob("*/clp.json"))
    if not cards:
        remedy = f"{make('repro')} trains them, {make('pull')} fetches those of a remote"
        return Finding("models", "note", "none yet", remedy)
    for card in cards:
        base = card.parent / read_json(card, remedy="run `dvc repro`", keys={"base_model": str})["base_model"]
        for file in (card.parent / "experts.safetensors", base / "config.json"):
            if not file.is_file():
                return Finding(
                    "models", "problem", f"{card.parent} lacks {file}", f"run `dvc repro`, or {make('pull')}"
                )
    return Finding("models", "ok", ", ".join(card.parent.name for card in cards))


def _store() -> Finding:
    from clp_lightning.store.queries import Store

    path = Path("frontier.duckdb")
    if not path.exists():
        return Finding("store", "note", "none yet", f"{make('repro')} publishes the first run")
    try:
        runs = Store(path).runs()
    except ClpError as error:
        return Finding(
            "store", "problem", str(error), "see the line; the file is set aside when the next run is published"
        )
    latest = f", the latest {runs.run_id.iloc[0]}" if len(runs) else ""
    return Finding("store", "ok", f"{plural(len(runs), 'run')}{latest}")


def _prefect() -> Finding:
    if not Path("flows/check.py").is_file():
        return Finding("prefect", "note", "no flows in this folder", "scheduled retraining runs from a checkout")
    done = subprocess.run([sys.executable, "-m", "flows.check", "worker"], capture_output=True, text=True, timeout=120)
    if done.returncode:
        found, _, remedy = done.stderr.strip().removeprefix("error: ").rpartition("; ")
        return Finding("prefect", "note", found, f"only scheduled retraining needs it: {remedy}")
    return Finding("prefect", "ok", "server, pool and worker are there")
