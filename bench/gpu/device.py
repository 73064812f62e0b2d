"""A device's clock, memory and ceilings; on a CPU there is nothing to wait for and no peak to read."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Row = dict[str, Any]


def timed(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of `repeats` calls after one that is not counted; the device is waited for."""
    seconds = []
    for number in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset(device: str) -> None:
    """Give back what is cached and free, and count the peak anew: each measurement has its own."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> float | None:
    """Return the peak of the memory that torch held since `reset`, the model included, in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def ceilings(device: str, dtype: torch.dtype) -> Row:
    """Measure a large copy (bytes read and written per second) and a large product of random numbers (FLOP/s)."""
    count, size = (2**30, 8192) if device == "cuda" else (2**20, 256)
    source = torch.randn(count // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    copied, product = timed(lambda: target.copy_(source), device, 10), timed(lambda: a @ b, device, 10)
    return {"what": "ceilings", "bytes_per_s": 2 * count / copied, "flops": 2 * size**3 / product, "dtype": str(dtype)}
