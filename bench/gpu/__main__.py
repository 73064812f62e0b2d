"""Run one part on a GPU and write what came out: `python -m bench.gpu --part fast --out reports/gpu-fast.json`."""

import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from bench.gpu.device import Row
from clp_lightning.files import write_json

UNITS = {
    "tokens_per_s": "tokens/s", "ms_per_token": "ms/token", "over_plain": "over plain", "over_peft": "over PEFT",
    "share_of_bandwidth": "of bandwidth", "share_of_peak": "of peak", "peak_gb": "GB",
}  # fmt: skip


def main(
    part: Annotated[Literal["right", "fast"], typer.Option(help="right: the gpu-marked tests; fast: times.")],
    out: Annotated[Path | None, typer.Option(help="JSON file; reports/gpu-PART.json.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds: fast begins nothing new then, right is stopped.")] = 240.0,
    only: Annotated[str | None, typer.Option(help="One shape of fast: 135M, 1.2B or 7B.")] = None,
    tiny: Annotated[bool, typer.Option(help="Tiny shapes, and the tests, on the CPU: a dry run.")] = False,
) -> None:
    """Run one part; after every measurement the file holds all that is known, also if the rest is cut off.

    Ends with 1 if a test failed or was not run.
    """
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("bench.gpu: torch finds no GPU; --tiny runs the same on the CPU")
    out, started = out or Path(f"reports/gpu-{part}.json"), time.monotonic()
    report: dict[str, Any] = {"part": part, "machine": machine(), "rows": [], "left_out": None}
    for row in outcomes(out, limit) if part == "right" else times(tiny, only):
        row["at_s"] = round(time.monotonic() - started, 1)
        report["rows"].append(row)
        left = planned(tiny, only)[len(report["rows"]) :] if part == "fast" else []
        over = row["at_s"] > limit and bool(left)
        report["left_out"] = f"{limit:.0f} s were over before: {'; '.join(left)}" if over else None
        write_json(out, report)
        print(line(row), flush=True)
        if over:
            break
    print(summary(report))
    raise SystemExit(int(part == "right" and not report["rows"][-1]["right"]))


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


def outcomes(out: Path, limit: float) -> Iterator[Row]:
    """Yield what `right` finds; pytest's own words go beside the JSON file."""
    from bench.gpu.right import outcomes

    return outcomes(out.with_suffix(".log"), limit)


def times(tiny: bool, only: str | None) -> Iterator[Row]:
    """Yield what `fast` measures."""
    from bench.gpu import fast

    return fast.measure(shapes(tiny, only), "cpu" if tiny else "cuda")


def planned(tiny: bool, only: str | None) -> list[str]:
    """Name what `fast` measures, in order."""
    from bench.gpu import fast

    return fast.planned(shapes(tiny, only))


def shapes(tiny: bool, only: str | None) -> dict[str, Any]:
    """Return the shapes that are asked for; another name than theirs ends the program."""
    from bench.gpu import subjects

    known = subjects.TINY if tiny else subjects.SHAPES
    if only and only not in known:
        raise SystemExit(f"bench.gpu: --only {only}: expected one of {', '.join(known)}")
    return {only: known[only]} if only else known


def line(row: Row) -> str:
    """Return a row in one line."""
    if "outcome" in row:
        return f"{row['at_s']:6.1f} s  {row['outcome']:8} {row.get('test', '')}"
    shown = [f"{row[key]:,.3g} {unit}" for key, unit in UNITS.items() if row.get(key) is not None]
    seconds = f"{row['seconds']:.3f} s" if "seconds" in row else "no memory" if "out_of_memory" in row else ""
    subject = f"{row.get('model', ''):5} {row['what']:34} {row.get('rows', ''):>4}"
    return f"{row['at_s']:6.1f} s  {subject} {seconds:>9}  {', '.join(shown)}"


def summary(report: dict[str, Any]) -> str:
    """Return the table that is printed last: the machine, all rows of fast or what was not right, and what was left out."""
    rows = report["rows"]
    if report["part"] == "right":
        counts = Counter(row["outcome"] for row in rows[:-1])
        said = [", ".join(f"{number} {outcome}" for outcome, number in counts.items()), rows[-1]["outcome"]]
        said += [line(row) for row in rows[:-1] if row["outcome"] in ("failed", "error")]
    else:
        top = rows[0]
        said = [
            f"a copy moves {top['bytes_per_s'] / 1e12:.3g} TB/s, a product runs at {top['flops'] / 1e12:.4g} TFLOP/s"
        ]
        said += [line(row) for row in rows[1:]]
    left = [f"left out: {report['left_out']}"] if report["left_out"] else []
    return "\n".join(["", ", ".join(f"{key} {value}" for key, value in report["machine"].items()), *said, *left])


if __name__ == "__main__":
    typer.run(main)
