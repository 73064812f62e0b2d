"""What `clp data` shows: every problem of the data and preference pairs that params.yaml names, and some rows.

What makes a stage refuse the data as a whole is asked here in the stage's own words.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clp_lightning.config import needs
from clp_lightning.config.data import Corruptions, GivenSplits, Preferences, Scores, Table
from clp_lightning.config.parameters import Config
from clp_lightning.data import own_rows
from clp_lightning.data.tables import files_of
from clp_lightning.data.transcripts import is_transcript
from clp_lightning.errors import ClpError, plural

SAMPLES = 2
Lengths = Callable[[Mapping[str, Sequence[str]]], dict[str, dict[str, int]]]  # of the documents of each split


def check_splits(sizes: Mapping[str, int], where: str, limit: int | None) -> None:
    """Raise `ClpError` for a split without rows; `where` is the section of params.yaml, `limit` its own."""
    empty = [split for split, size in sizes.items() if not size]
    if not empty:
        return
    more = "" if limit is None else f"raise {where}.limit, "
    kind, other = ("pair", "change heldout") if "heldout" in sizes else ("row", "split them another way")
    raise ClpError(
        f"{where}: the split {empty[0]!r} would be empty: {plural(sum(sizes.values()), kind)} in all; {more}give more "
        f"{kind}s, or {other}"
    )


def check(config: Config, root: Path = Path("."), lengths: Lengths | None = None) -> dict[str, dict[str, Any]]:
    """Return what is known of every own source, read from the project's folder `root`.

    That is `source`, `rows` per split, `files` (file, split) of a folder, `samples`, `problems` (place, reason), `notes` (what to
    know), `faults` (what makes a stage refuse the whole), `skip_bad_rows` and, of prompts, `long_prompts`: what `lengths` counts
    of them as stage sft does (empty where that is refused); without it None. Raises `UsageError` when a source cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    if isinstance(config.data, Table):
        parts, problems = own_rows.examples(config.data, config.seed, root)
        shown = [{"prompt": row.document, "reference": row.summary} for row in parts["train"][:SAMPLES]]
        found["data"] = _section(config.data, root, parts, problems, shown)
        found["data"]["notes"] = _notes(config.data, parts)
        found["data"]["faults"] += _lines(lambda: needs.check_sft(config, [row.summary for row in parts["train"]]))
        for split in ("train", "test"):
            rows = [(row.document, row.summary) for row in parts[split]]
            found["data"]["faults"] += _lines(functools.partial(needs.check_rewards, config, rows, root))
        found["data"]["long_prompts"] = None if lengths is None else {}
        if lengths is not None:
            documents = {split: [row.document for row in rows] for split, rows in parts.items()}
            found["data"]["faults"] += _lines(lambda: found["data"].update(long_prompts=lengths(documents)))
    else:
        found["data"] = {
            "source": "API descriptions of the botocore package", "rows": {}, "files": [], "samples": [], "problems": [],
            "notes": [], "faults": [], "skip_bad_rows": False,
        }  # fmt: skip
    for name, model in config.reward_models.items():
        if not isinstance(model.pairs, Corruptions):
            pairs, problems = own_rows.pairs(model.pairs, config.seed, root)
            shown = [
                {"prompt": pair.document, "chosen": pair.chosen, "rejected": pair.rejected}
                for pair in pairs["train"][:SAMPLES]
            ]
            where = f"reward_models.{name}.pairs"
            found[where] = _section(model.pairs, root, pairs, problems, shown, where)
    return found


def _section(
    config: Table | Preferences | Scores,
    root: Path,
    parts: Any,
    problems: list[Any],
    samples: list[Any],
    where: str = "data",
) -> dict[str, Any]:
    sizes = {split: len(rows) for split, rows in parts.items()}
    return {
        "source": config.source,
        "rows": sizes,
        "files": _files(config, root),
        "samples": samples,
        "problems": [[problem.place, problem.text] for problem in problems],
        "notes": [],
        "faults": _lines(lambda: check_splits(sizes, where, config.limit)),
        "skip_bad_rows": config.skip_bad_rows,
    }


def _notes(config: Table, parts: Mapping[str, list[own_rows.Example]]) -> list[str]:
    if config.prompt is None:
        return []
    documents = [row.document for rows in parts.values() for row in rows]
    looking = sum(map(is_transcript, documents))
    if not looking:
        return []
    return [
        f"data.prompt: {looking} of {plural(len(documents), 'prompt')} look like transcripts (Human: ... Assistant: ...), and "
        "are read as one person's words; name the column as data.transcript, if its turns are to be turns"
    ]


def _files(config: Table | Preferences | Scores, root: Path) -> list[tuple[str, str | None]]:
    """Return a folder's files, each with the split that its name makes it; None where its rows go to every split."""
    given = isinstance(config, Table) and isinstance(config.splits, GivenSplits)
    return [
        (file, (own_rows.split_named(split) or split) if given else None)
        for split, files in files_of(config.source, config.subset, root).items()
        for file in files
    ]


def _lines(ask: Callable[[], None]) -> list[str]:
    try:
        ask()
    except ClpError as error:
        return [str(error)]
    return []
