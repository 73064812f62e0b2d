"""Progress of long work: rich's bar on a terminal, a plain line now and then where output is a log."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import track as rich_track

LINE_SECONDS = 15.0
Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """Write seconds as `m:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterate with rich's bar and its estimate of the time left on a terminal, with lines elsewhere."""
    if sys.stdout.isatty():
        yield from rich_track(items, description=description)
        return
    started = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == len(items) or now - printed >= LINE_SECONDS:
            printed = now
            left = (now - started) / done * (len(items) - done)
            print(f"{description}: {done} of {len(items)}, {duration(left)} left", flush=True)
