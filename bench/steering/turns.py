"""Timing in turns: a busy neighbour or a hot processor then slows every side of a ratio alike."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

Seconds = dict[str, list[float]]


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> Seconds:
    """Call every side once per round, after one round that is not counted; return the seconds of each call."""
    seconds: Seconds = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


class StepTurns:
    """Lets trainers that own their loop take turns step by step: each runs in a thread and waits for its turn."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.turn, self.started = names, 0, 0.0
        self.ready = threading.Barrier(len(names))  # nobody is set up while another one is timed
        self.arrived: set[str] = set()
        self.changed = threading.Condition()
        self.seconds: Seconds = {name: [] for name in names}

    def begin(self, name: str) -> None:
        """Wait for the turn of `name`; call it at the start of each of its steps."""
        if name not in self.arrived:
            self.arrived.add(name)
            self.ready.wait()
        with self.changed:
            self.changed.wait_for(lambda: self.names[self.turn] == name)
        self.started = time.perf_counter()

    def end(self, name: str) -> None:
        """Note the step's time and pass the turn on."""
        self.seconds[name].append(time.perf_counter() - self.started)
        with self.changed:
            self.turn = (self.turn + 1) % len(self.names)
            self.changed.notify_all()

    def run(self, trainers: Mapping[str, Callable[[], Any]], warm_up: int = 1) -> Seconds:
        """Run all trainers, which must make equally many steps; return their seconds without the first `warm_up`."""
        failures: list[BaseException] = []

        def guarded(train: Callable[[], Any]) -> None:
            try:
                train()
            except BaseException as error:  # the others would wait for ever
                failures.append(error)
                self.ready.abort()

        threads = [threading.Thread(target=guarded, args=(train,), daemon=True) for train in trainers.values()]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not failures:
            for thread in threads:
                thread.join(0.2)
        if failures:
            raise failures[0]
        return {name: values[warm_up:] for name, values in self.seconds.items()}


def entry(name: str, what: str, seconds: Seconds, bar: float | None, **more: Any) -> dict[str, Any]:
    """Return one entry of the report: the ratio of the first side's median to the second's."""
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    first, second = list(medians.values())[:2]
    return {
        "entry": name, "what": what, "ratio": first / second, "bar": bar, "medians_s": medians,
        "spread_s": {side: [min(values), max(values)] for side, values in seconds.items()},
        "rounds": len(next(iter(seconds.values()))), **more,
    }  # fmt: skip
