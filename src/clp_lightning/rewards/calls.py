"""Rewards of a user's own: a Python function of the project, and a server that is asked over HTTP."""

import importlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from clp_lightning.config.rewards import HttpReward, JudgeReward, PythonReward
from clp_lightning.errors import ClpError, one_line

PAUSE = 0.5  # seconds before the second try, twice as long before each further one, at most LONGEST_PAUSE
LONGEST_PAUSE = 8.0
LARGEST_ANSWER = 16 * 2**20  # bytes
BUSY = (408, 425, 429)  # what a server answers that may say otherwise a moment later, as any from 500 on

Result = TypeVar("Result")


def import_function(function: str, root: Path) -> Callable[..., Any]:
    """Import `module:function`; the project folder comes first while its module is imported, and stays in the search path.

    Raises `ClpError` for a module or function that is not there, and whatever the module raises.
    """
    module, name = function.split(":")
    folder, before = str(root.resolve()), list(sys.path)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there and lacks another
        raise ClpError(f"no module {module} in {folder} nor among the installed ones; correct function") from None
    finally:
        sys.path[:] = before if folder in before else [*before, folder]
    found = getattr(loaded, name, None)
    if not callable(found):
        raise ClpError(f"{loaded.__file__ or module} has no function {name}; correct function")
    return found


class Function:
    """A function (documents, responses) -> a number for each, that also gets `references` if it has a parameter so named."""

    def __init__(self, section: PythonReward, root: Path) -> None:
        self.function, self.batch_size = import_function(section.function, root), section.batch_size
        self.source = getattr(sys.modules[section.function.split(":")[0]], "__file__", None)
        self.needs_references = "references" in inspect.signature(self.function).parameters

    def __call__(
        self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str] | None = None
    ) -> np.ndarray:
        """Call the function with lists of at most `batch_size` texts; raises `ClpError` for a wrong number of values."""
        parts, size = [], self.batch_size or max(1, len(responses))
        for start in range(0, len(responses), size):
            batch = slice(start, start + size)
            more = {} if references is None else {"references": list(references[batch])}
            texts = list(documents[batch]), list(responses[batch])
            values = np.asarray(self.function(*texts, **more), dtype=np.float64)
            if values.shape != (len(texts[1]),):
                raise ClpError(
                    f"returned shape {values.shape} for {len(texts[1])} responses; return one number for each"
                )
            parts.append(values)
        return np.concatenate(parts)


class Http:
    """A server that gets `{"documents": [...], "responses": [...], "references": [...]}`, answers `{"scores": [...]}`."""

    def __init__(self, section: HttpReward) -> None:
        self.client, self.batch_size, self.needs_references = Client(section), section.batch_size, section.references

    def __call__(
        self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str] | None = None
    ) -> np.ndarray:
        """Ask for `batch_size` scores at a time; all of them, or a `ClpError`."""
        columns = {"documents": documents, "responses": responses}
        columns |= {} if references is None else {"references": references}
        scores: list[float] = []
        for start in range(0, len(responses), self.batch_size):
            batch = {key: list(texts[start : start + self.batch_size]) for key, texts in columns.items()}
            scores += self.client.post(self.client.section.url, batch, partial(_scores, len(batch["responses"])))
        return np.array(scores, dtype=np.float64)


class Client:
    """Posts JSON with a section's `timeout`, `retries` and token; used by one process, by any of its threads."""

    def __init__(self, section: HttpReward | JudgeReward) -> None:
        self.section = section
        self._session: httpx.Client | None = None

    def post(self, url: str, content: Any, read: Callable[[Any], Result]) -> Result:
        """Return what `read` makes of the answer; it raises `ValueError` for an answer that is none.

        Raises `ClpError` when every try failed, and at once for an answer that would not change, such as 404.
        """
        tries, shown = self.section.retries + 1, url.split("?")[0]  # behind it may be a key
        for attempt in range(tries):
            if attempt:
                time.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                return read(self._answer(url, content))
            except httpx.TimeoutException:
                problem = f"gave no answer within {self.section.timeout:g} s"
            except httpx.TransportError as error:
                problem = f"cannot be reached ({one_line(error)})"
            except ValueError as error:
                problem = one_line(error)
        raise ClpError(f"{shown} {problem} ({tries} tries); start or mend the server, or correct url or timeout")

    def _answer(self, url: str, content: Any) -> Any:
        if self._session is None:
            self._session = httpx.Client(timeout=self.section.timeout)
        deadline, body = time.monotonic() + self.section.timeout, b""
        with self._session.stream("POST", url, json=content, headers=self._headers()) as response:
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > deadline:  # httpx's own limit is for each part, however small
                    raise httpx.ReadTimeout("too slow")
                if len(body) > LARGEST_ANSWER:
                    raise ValueError(f"answered with more than {LARGEST_ANSWER} bytes")
        status = response.status_code
        if status >= 500 or status in BUSY:
            raise ValueError(f"answered {status} ({one_line(body.decode(errors='replace'))})")
        if status != 200:
            text = one_line(body.decode(errors="replace"))
            raise ClpError(f"{url.split('?')[0]} answered {status} ({text}); correct url, or what the server expects")
        try:
            return json.loads(body, parse_int=float)  # an integer may be too large for a float, which then is infinite
        except (ValueError, RecursionError):
            raise ValueError(f"answered no JSON ({one_line(body.decode(errors='replace'))})") from None

    def _headers(self) -> dict[str, str]:
        name = self.section.token_env
        if name is None:
            return {}
        token = os.environ.get(name, "").strip()
        if not token:
            raise ClpError(f"the environment variable {name} is not set; put the server's token there")
        return {"Authorization": f"Bearer {token}"}


def _scores(count: int, answer: Any) -> list[float]:
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        found = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        raise ValueError(f"answered {found} for {count} responses")
    for row, score in enumerate(scores):
        if not isinstance(score, float) or not math.isfinite(score):
            raise ValueError(f"answered {one_line(repr(score))} for response {row + 1}, which is no finite number")
    return scores
