"""Is everything right: the outcome of each test in tests/gpu, as soon as it is known."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.device import Row

OUTCOME = re.compile(r"^(tests/gpu/\S+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)")
COLLECTED = re.compile(r"collected (\d+) items")
COMMAND = [
    sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider", "-v", "-rs", "--tb=short",
    "--show-capture=stdout", "--color=no",
]  # fmt: skip


def outcomes(log: Path, limit: float) -> Iterator[Row]:
    """Yield a row per test and a last one of all; what pytest printed goes into `log`. After `limit` seconds it is stopped."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"COLUMNS": "250"}
    )
    assert process.stdout is not None
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        process.kill()

    timer = threading.Timer(limit, stop)
    timer.start()
    tests, done, last = "unknown", 0, ""
    try:
        with log.open("w", encoding="utf-8") as kept:
            for line in process.stdout:
                kept.write(line)
                kept.flush()
                last = line.strip(" =\n") or last
                if found := COLLECTED.search(line):
                    tests = found[1]
                if found := OUTCOME.match(line):
                    done += 1
                    yield {"what": "test", "test": found[1], "outcome": found[2].lower()}
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    outcome = f"stopped after {done} of {tests} tests: {limit:.0f} s were over" if stopped.is_set() else last
    yield {"what": "all", "outcome": outcome, "right": code == 0 and not stopped.is_set()}
