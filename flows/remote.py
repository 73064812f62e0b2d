"""Remote storage of the artefacts: `python -m flows.remote set URL`, `push`, `pull`.

DVC does the work; a bucket needs packages that exclude the pinned botocore (the corpus), so that `dvc` then comes from an
environment of its own (`make s3`).
"""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from clp_lightning.files import atomic

NAME = "storage"
STORE, COPY = Path("frontier.duckdb"), Path("models") / "frontier.duckdb"  # DVC must not touch the store itself
# no stage makes them: `dvc add` writes their .dvc files
ADDED = ("models/kept", "models/champion.json", COPY.as_posix())
PROJECT = Path(os.environ.get("CLP_PROJECT", Path(__file__).resolve().parent.parent))
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Workspace = Annotated[Path, typer.Option(help="Folder with a dvc.yaml.")]


class RemoteError(RuntimeError):
    """The remote cannot be used; the message is one line with a remedy."""


def url(workspace: Path) -> str | None:
    """Return where the workspace's default remote lies, or None when none is set."""
    default = _dvc(workspace, "config", "core.remote", executable=_executable(None), check=False).strip()
    if not default:
        return None
    return _dvc(workspace, "config", f"remote.{default}.url", executable=_executable(None)).strip()


def commands(workspace: Path, action: str) -> list[list[str]]:
    """Return the commands that push or pull the pipeline's outputs, the champion and a copy of the store.

    For a push the copy is made here. Raises `RemoteError`.
    """
    where = url(workspace)
    if where is None:
        raise RemoteError(f"{workspace.resolve()}: no remote is set; name one with `make remote URL=...`")
    dvc = _executable(where)
    if action == "pull":
        return [[*dvc, "pull", "--force"]]
    _copy(workspace / STORE, workspace / COPY)
    present = [path for path in ADDED if (workspace / path).exists()]
    return [*([[*dvc, "add", "--quiet", *present]] if present else []), [*dvc, "push"]]


@app.command("set")
def set_remote(
    where: Annotated[str, typer.Argument(metavar="URL", help="A folder, or s3://BUCKET/PATH.")],
    endpoint: Annotated[str | None, typer.Option(help="Address of an S3-compatible server.")] = None,
    workspace: Workspace = Path("."),
) -> None:
    """Set the remote of a workspace (in .dvc/config.local, which git ignores: a team's bucket goes to .dvc/config).

    Example: python -m flows.remote set s3://models/clp --endpoint http://127.0.0.1:9000
    """
    target = where if "://" in where else str(Path(where).resolve())
    _dvc(workspace, "remote", "add", "--local", "--force", "--default", NAME, target, executable=_executable(None))
    if endpoint:
        _dvc(workspace, "remote", "modify", "--local", NAME, "endpointurl", endpoint, executable=_executable(None))
    print(f"remote of {workspace.resolve()}: {target}{f' at {endpoint}' if endpoint else ''}")


@app.command()
def push(workspace: Workspace = Path(".")) -> None:
    """Copy models, data, store and champion to the remote; commit dvc.lock and models/*.dvc to name them.

    Example: python -m flows.remote push
    """
    _run(workspace, "push")


@app.command()
def pull(workspace: Workspace = Path(".")) -> None:
    """Fetch what dvc.lock and models/*.dvc name; nothing is trained.

    Example: python -m flows.remote pull
    """
    _run(workspace, "pull")
    if not (workspace / STORE).exists():
        _copy(workspace / COPY, workspace / STORE)


def _run(workspace: Path, action: str) -> None:
    for command in commands(workspace, action):
        status, reasons = _watched(command, workspace)
        if status != 0:
            raise RemoteError(
                f"dvc {action}: {reasons[0] if reasons else f'failed with status {status}'}; check the remote's address and "
                "credentials (for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), then run it again"
            )


def _watched(command: list[str], workspace: Path) -> tuple[int, list[str]]:
    """Run DVC with its progress bars; return its status and its errors, without the offers of help that follow them."""
    environment = {**os.environ, "COLUMNS": str(shutil.get_terminal_size().columns)}
    if sys.stderr.isatty():
        environment["DVC_IGNORE_ISATTY"] = "1"  # bars, although it writes into a pipe
    reasons: list[str] = []
    with subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stderr is not None
        for line in io.TextIOWrapper(running.stderr, errors="replace", newline=""):  # a bar's lines end with \r
            if line.startswith("ERROR: "):
                reasons.append(line.removeprefix("ERROR: ").removeprefix("unexpected error - ").strip())
            elif not reasons:
                sys.stderr.write(line)
                sys.stderr.flush()
    return running.returncode, reasons


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        with atomic(target) as beside:
            shutil.copyfile(source, beside)


def _executable(where: str | None) -> list[str]:
    if where is None or not where.startswith("s3://"):
        return [sys.executable, "-m", "dvc"]
    python = PROJECT / ".venv-s3" / "bin" / "python"
    if not python.exists():
        raise RemoteError(f"{where}: buckets need packages of their own; install them once with `make s3`")
    return [str(python), "-m", "dvc"]


def _dvc(workspace: Path, *arguments: str, executable: list[str], check: bool = True) -> str:
    done = subprocess.run([*executable, *arguments], cwd=workspace, capture_output=True, text=True)
    if check and done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RemoteError(f"{workspace.resolve()}: {lines[0] if lines else 'dvc failed without a word'}")
    return done.stdout


def main() -> None:
    """Run the command; an error is one line."""
    try:
        app()
    except RemoteError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
