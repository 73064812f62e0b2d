"""A real `clp serve` in a process of its own, for loads and fuzzing: its address, memory and processor time."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.listening import free_port, wait_for

TICK = os.sysconf("SC_CLK_TCK")


class Served:
    """`clp serve` on a free port, from entering to leaving; raises RuntimeError with its output when it does not come up."""

    def __init__(self, model: Path, *options: str, **environment: str) -> None:
        self.model, self.name = model, model.name
        self.port = free_port()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clp_lightning.cli", "serve", "--model", str(model), "--port", str(self.port), *options],
            env={**os.environ, **environment}, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> "Served":
        try:
            wait_for(f"{self.url}/health", self.process, 180)
        except RuntimeError as error:
            self.stop(signal.SIGKILL)
            raise RuntimeError(f"clp serve did not come up\n{self.output()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGTERM)
        self.log.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to keep."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send one request; returns status and JSON."""
        with contextlib.closing(self.connect()) as connection:
            return exchange(connection, method, path, body)

    def memory(self) -> int:
        """Bytes that the process has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def processor_seconds(self) -> float:
        """Processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def stop(self, number: int, seconds: float = 180) -> int:
        """Send a signal, unless it has ended, and wait for its end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def output(self) -> str:
        """What it has printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")


def exchange(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send one request over a connection that is kept; returns status and JSON."""
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def busy_seconds() -> float:
    """Processor time that the whole machine has used."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / TICK  # without idle and waiting for disks
