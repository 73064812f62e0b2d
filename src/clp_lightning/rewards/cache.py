"""Scores that were computed once: in memory, and on disk where a server or a judge would be asked again.

The file has a line `{"key": SHA-256, "score": number}` per (document, response, reference). Several processes may append
to it at once; of what two of them compute at the same time both write a line, and the last one holds.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clp_lightning.errors import ClpError

Texts = Sequence[str | None]  # document, response and, for a reward that reads it, reference


class Cache:
    """Scores by the texts they are of, read from and appended to `file` unless that is None."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._scores: dict[str, float] | None = None

    def scores(self, rows: Sequence[Texts], compute: Callable[[list[int]], np.ndarray]) -> np.ndarray:
        """Return the score of each row, float64 [B]; `compute` gets the positions of those that are new, each text once.

        It is all or nothing: when `compute` raises, nothing is kept. Raises `ClpError` when the file cannot be written.
        """
        known = self._load()
        keys = [key(texts) for texts in rows]
        new = {k: row for row, k in reversed(list(enumerate(keys))) if k not in known}  # the first row of each text
        if new:
            positions = sorted(new.values())
            found = {keys[row]: float(score) for row, score in zip(positions, compute(positions), strict=True)}
            self._append(found)
            known.update(found)
        return np.array([known[k] for k in keys], dtype=np.float64)

    def _load(self) -> dict[str, float]:
        if self._scores is None:
            self._scores = {}
            if self.file is not None and self.file.is_file():
                try:
                    lines = self.file.read_bytes().splitlines()
                except OSError as error:
                    raise ClpError(
                        f"cannot read {self.file}: {error.strerror}; fix its permissions or remove it"
                    ) from error
                for line in lines:
                    self._scores |= _parsed(line)
        return self._scores

    def _append(self, found: dict[str, float]) -> None:
        if self.file is None:
            return
        lines = "".join(f"{json.dumps({'key': k, 'score': score})}\n" for k, score in found.items())
        # One write of whole lines, so that processes cannot mix theirs. The empty line before them ends a line that a
        # process which was killed, or a full disk, has left unfinished.
        content = f"\n{lines}".encode()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(descriptor, content) < len(content):
                    raise OSError("the disk is full")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ClpError(
                f"cannot write {self.file}: {error.strerror or error}; free space, or set cache: memory"
            ) from error


def key(texts: Texts) -> str:
    """Return the SHA-256 of texts, which tells ("a", "bc") from ("ab", "c")."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _parsed(line: bytes) -> dict[str, float]:
    try:
        entry = json.loads(line)
        score = float(entry["score"])
        return {str(entry["key"]): score} if math.isfinite(score) else {}
    except (ValueError, KeyError, TypeError):  # half a line: its text is scored again
        return {}
