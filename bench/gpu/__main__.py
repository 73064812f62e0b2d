"""Run one part on a GPU and write what came out: `python -m bench.gpu --part fast --out reports/gpu-fast.json`."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from clp_lightning.files import write_json


def main(
    part: Annotated[Literal["right", "fast"], typer.Option(help="right: the gpu-marked tests; fast: times.")],
    out: Annotated[Path | None, typer.Option(help="JSON file; reports/gpu-PART.json.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which nothing new is begun.")] = 240.0,
    only: Annotated[str | None, typer.Option(help="One shape of fast: 135M, 1.2B or 7B.")] = None,
    tiny: Annotated[bool, typer.Option(help="Tiny shapes on the CPU: a dry run.")] = False,
) -> None:
    """Run one part; after every measurement the file holds all that is known, also if the rest is cut off."""
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("bench.gpu: torch finds no GPU; --tiny runs the same on the CPU")
    out, started = out or Path(f"reports/gpu-{part}.json"), time.monotonic()
    report: dict[str, Any] = {"part": part, "machine": machine(), "rows": [], "left_out": None}
    for row in tests(tiny) if part == "right" else times(tiny, only):
        row["at_s"] = round(time.monotonic() - started, 1)
        report["rows"].append(row)
        write_json(out, report)
        print(
            json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}),
            flush=True,
        )
        if row["at_s"] > limit:
            report["left_out"] = f"what comes after {row}: {limit:.0f} s were over"
            write_json(out, report)
            print(report["left_out"], flush=True)
            break


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    import transformers

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def tests(tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the outcome of each test in tests/gpu; on a CPU they are only collected."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/gpu",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-q",
        "--tb=short",
    ]
    done = subprocess.run(
        [*command, *(["--collect-only"] if tiny else [])],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "250"},
    )
    print(done.stdout[-20000:], done.stderr[-1000:], file=sys.stderr)
    for line in done.stdout.splitlines():
        outcome, _, name = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            yield {"test": name, "outcome": outcome.lower()}
    yield {
        "test": "all",
        "outcome": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:],
    }


def times(tiny: bool, only: str | None) -> Iterator[dict[str, Any]]:
    """Yield what `fast` measures."""
    from bench.gpu import fast, subjects

    shapes = subjects.TINY if tiny else subjects.SHAPES
    yield from fast.measure({only: shapes[only]} if only else shapes, "cpu" if tiny else "cuda")


if __name__ == "__main__":
    typer.run(main)
