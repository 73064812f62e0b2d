"""Continuous batching: a thread that writes requests of any weighting together and hands out what it has written."""

import contextlib
import queue
import threading
from collections.abc import Sequence

import torch

from clp_lightning.errors import ClpError, UsageError
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving.batch import Batch, Request

TOKENS_BETWEEN = 2  # that rows write before more prompts are read, with half of the seats taken


class BusyError(ClpError):
    """The queue is full; the caller should come back later."""


class Engine:
    """Writes requests of any weighting together, at most `rows` at a time; `waiting` more may queue.

    Raises `UsageError` for policies that cannot be served: mixtures, and those without experts.
    """

    def __init__(self, policy: SteerablePolicy, *, rows: int = 64, waiting: int = 256) -> None:
        if policy.mixture is not None or policy.experts is None:
            raise UsageError("this policy cannot be served: only those with experts can, and no mixtures of several")
        self.policy, self.rows = policy, rows
        self.batch = Batch(policy)
        self._queue: queue.Queue[Request | None] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._tokens_since = 0  # tokens of each row since prompts were read
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was asked for, then stop."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes a thread that waits
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs, so that what is submitted will be answered."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Number of rows that are being written."""
        return len(self.batch.requests)

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return self._queue.qsize()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all of the requests, or raise `BusyError` and none."""
        if self._closing.is_set():
            raise BusyError("the server is shutting down")
        if self._queue.qsize() + len(requests) > self._queue.maxsize:
            raise BusyError(f"{self._queue.maxsize} requests wait already; try again later")
        for each in requests:
            try:
                self._queue.put_nowait(each)
            except queue.Full:
                for other in requests:
                    other.cancelled = True
                raise BusyError(f"{self._queue.maxsize} requests wait already; try again later") from None

    @torch.no_grad()
    def _run(self) -> None:
        assert self.policy.experts is not None
        with self.policy.experts.frozen():
            while self.batch.requests or not (self._closing.is_set() and self._queue.empty()):
                admitted = self._next()
                try:
                    if admitted:
                        self.batch.admit(admitted)
                        self._tokens_since = 0
                    if self.batch.requests:
                        self.batch.step()
                        self._tokens_since += 1
                except Exception as error:  # one bad batch must not end the server
                    for each in {id(r): r for r in [*self.batch.requests, *admitted]}.values():
                        each.text, each.finish = f"{type(error).__name__}: {error}", "error"
                        each.deliver(each)
                    self.batch = Batch(self.policy)

    def _next(self) -> list[Request]:
        """Take what waits, as far as there is room; with nothing to write, wait for it.

        Every forward reads all weights, which takes a small model on a CPU as long as the work on two prompts or twenty rows.
        So of many that wait none is taken for a seat or two, and with half of the seats taken prompts are read after every
        second token only: 7 % more requests a second (docs/log.md).
        """
        found: list[Request] = []
        written = len(self.batch.requests)
        if written and self.rows - written < min(self._queue.qsize(), self.rows // 8):
            return found
        if self.rows <= 2 * written and self._tokens_since < TOKENS_BETWEEN:
            return found
        while len(found) + len(self.batch.requests) < self.rows:
            try:
                idle = not (found or self.batch.requests or self._closing.is_set())
                each = self._queue.get(block=idle)
            except queue.Empty:
                break
            if each is not None and not each.cancelled:
                found.append(each)
            elif each is None:
                break
        return found
