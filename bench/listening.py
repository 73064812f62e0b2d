"""Ports of loopback, and waiting for what listens on one."""

import socket
import subprocess
import time
import urllib.request


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process answers at an address; raises RuntimeError when it ends or takes too long."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError(f"nothing answers at {url}") from None
            time.sleep(0.2)
