"""Continuous batching: a thread that writes requests of any weighting together and hands out what it has written."""

import contextlib
import queue
import threading
from collections.abc import Sequence

import torch

from clp_lightning.errors import ClpError, UsageError, one_line, plural
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving.batch import Batch, Request

TOKENS_BETWEEN = 2  # that rows write before more prompts are read, with half of the seats taken


class BusyError(ClpError):
    """The queue is full; the caller should come back later."""


class DeadError(ClpError):
    """The thread that writes has ended by an error; nothing is answered any more."""


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
        self._taken: list[Request] = []  # from the queue, and not yet in the batch
        self._lock = threading.Lock()  # nothing is queued behind the back of a thread that ends
        self._closing = threading.Event()
        self._failure = ""  # what the thread died of
        self._tokens_since = 0  # tokens of each row since prompts were read
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Finish what was asked for, then stop."""
        with self._lock:
            self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes a thread that waits
        self._thread.join()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()  # it had ended before

    @property
    def alive(self) -> bool:
        """Whether the thread runs, so that what is submitted will be answered."""
        return self._thread.is_alive() and not self._failure

    @property
    def running(self) -> int:
        """Number of rows that are being written."""
        return len(self.batch.requests)

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return self._queue.qsize()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all of the requests or none: raises `BusyError` when too many wait, `DeadError` when none would be answered."""
        with self._lock:
            if self._failure:
                raise DeadError(f"nothing is answered any more ({self._failure}); start the server again")
            if self._closing.is_set():
                raise BusyError("the server is shutting down")
            if self._queue.qsize() + len(requests) > (most := self._queue.maxsize):
                waits = "waits" if most == 1 else "wait"
                raise BusyError(f"{plural(most, 'request')} {waits} already; try again later")
            for each in requests:
                self._queue.put_nowait(each)

    def _run(self) -> None:
        assert self.policy.experts is not None
        try:
            with torch.no_grad(), self.policy.experts.frozen():
                while self.batch.requests or not (self._closing.is_set() and self._queue.empty()):
                    self._turn()
        except BaseException as error:  # nobody is left to answer, and who waits must not wait for ever
            self._die(error)

    def _turn(self) -> None:
        """Read the prompts that there is room for, and write a token of every row."""
        self._taken = self._next()
        if self._taken:
            self._admit(self._taken)
            self._taken, self._tokens_since = [], 0
        if not self.batch.requests:
            return
        try:
            self.batch.step()
            self._tokens_since += 1
        except Exception as error:  # one bad batch must not end the server
            failed, self.batch = self.batch.requests, Batch(self.policy)
            for each in failed:
                each.fail(error)

    def _admit(self, requests: Sequence[Request]) -> None:
        """Let requests join the batch; where that fails, one at a time, so that only what cannot be read fails."""
        try:
            self.batch.admit(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return
            for each in requests:
                self._admit([each])

    def _die(self, error: BaseException) -> None:
        """Fail all that is being written or waits, and take nothing any more."""
        with self._lock:
            self._failure = one_line(f"{type(error).__name__}: {error}")
            left: list[Request | None] = [*self.batch.requests, *self._taken]
            while not self._queue.empty():
                left.append(self._queue.get_nowait())
        for each in left:
            if each is not None:
                with contextlib.suppress(BaseException):  # what ends one must not keep the others waiting
                    each.fail(error)

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
