"""Progress of long work: rich's bar on a terminal, a plain line now and then where output is a log."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
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


class Jobs(contextlib.AbstractContextManager["Jobs"]):
    """Jobs side by side, counted as they end: one moving line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done = name, total, done
        self.shown: list[str] = []
        self.bar: Progress | None = None
        if sys.stdout.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            self.bar = Progress(*columns, transient=True, refresh_per_second=1)
            self.task = self.bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> "Jobs":
        """Begin, and say what there is to do."""
        if self.bar is not None:
            self.bar.start()
        self.say(f"{self.name}: {self.done} of {self.total} done")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines that were said."""
        if self.bar is not None:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def running(self, names: Sequence[str]) -> None:
        """Name what is at work, on a terminal."""
        if self.bar is not None and list(names) != self.shown:
            self.shown = list(names)
            self.bar.update(self.task, description=", ".join(names) or self.name)

    def advance(self) -> None:
        """Count one job more."""
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
