"""One DVC stage as a process group that never outlives the flow that started it.

A task's thread is not told that its flow was cancelled, and a worker may be killed outright. So every stage runs under
a small guard (`python stage_process.py COMMAND...`, a session of its own) that reads a pipe held by the flow: when the
pipe closes, for whatever reason, the guard ends the whole group.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
PROGRESS_SECONDS = 5.0  # at most one progress-bar line in this time
TAIL_LINES = 20


class StageFailedError(RuntimeError):
    """A stage ended with a non-zero status; the message holds its last lines."""


class StageProcesses:
    """The stage processes of one flow run: starts them, streams their output, ends all of them at once."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `end_all` was called."""
        return self._closed

    def run(self, command: list[str], *, cwd: Path, log: Callable[[str], None], name: str) -> list[str]:
        """Run `command` to its end and return its output lines; raises `StageFailedError` on a non-zero status."""
        process = self._start(command, cwd)
        try:
            lines = _stream(process, log)
            status = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            _close_pipe(process)
        if status != 0:
            reason = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            tail = "\n".join(list(lines)[-TAIL_LINES:]) or "(no output)"
            raise StageFailedError(f"stage {name} {reason}; its last lines:\n{tail}")
        return list(lines)

    def end_all(self) -> None:
        """End every process group, SIGTERM first, SIGKILL after a grace period; nothing can be started afterwards."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _signal_group(process.pid, signal.SIGTERM)
            _close_pipe(process)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            while _group_alive(process) and time.monotonic() < deadline:
                time.sleep(0.05)
            if _group_alive(process):
                _signal_group(process.pid, signal.SIGKILL)

    def _start(self, command: list[str], cwd: Path) -> subprocess.Popen[bytes]:
        # Stages call `clp` and `dvc` by name; a worker's PATH need not name this environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        with self._lock:
            if self._closed:
                raise StageFailedError("the flow is ending; no further stage is started")
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), *command],
                cwd=cwd,
                env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _stream(process: subprocess.Popen[bytes], log: Callable[[str], None]) -> deque[str]:
    r"""Log complete lines as they come; a line that ends in \r is a progress bar's, logged now and then."""
    assert process.stdout is not None
    kept: deque[str] = deque(maxlen=1000)
    rest, last_progress = b"", 0.0
    with process.stdout as stream:
        while chunk := os.read(stream.fileno(), 65536):
            pieces = (rest + chunk).splitlines(keepends=True)
            # A final "\r" may be half of "\r\n": it waits for what follows, like an unfinished line.
            rest = b"" if pieces[-1].endswith(b"\n") else pieces.pop()
            for piece in pieces:
                text = piece.decode("utf-8", "replace").rstrip()
                if not text:
                    continue
                if piece.endswith(b"\r"):
                    if time.monotonic() - last_progress < PROGRESS_SECONDS:
                        continue
                    last_progress = time.monotonic()
                else:
                    kept.append(text)
                log(text)
    if text := rest.decode("utf-8", "replace").strip():
        kept.append(text)
        log(text)
    return kept


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the guard, which would otherwise count as a member
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _guard(command: list[str]) -> int:
    """Run `command` in this group; end the group when standard input closes. Returns the command's status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the guard must see the others out
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)
    )

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    os.killpg(0, signal.SIGTERM)  # what the stage left behind; it would also hold the log's pipe open
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
