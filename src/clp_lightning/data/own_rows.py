"""A user's own rows as a corpus (prompt, reference answer) or as preference pairs: read, checked, split and counted.

Every row that cannot be used is a `Problem` with its place. One ends the stage, unless `skip_bad_rows` is set: then they are
left out and counted in the card. The same prompt never lies in two splits.
"""

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clp_lightning.config.data import ColumnSplits, GivenSplits, HashSplits, Preferences, Scores, Table
from clp_lightning.data import texts, transcripts
from clp_lightning.data.tables import Problem, Row, read_rows, text_of, value_of
from clp_lightning.errors import ClpError, UsageError

SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
ORDER = ("test", "validation", "train")  # of two equal prompts in two splits, the training row is the one to go
MOST_ANSWERS = 16  # to one prompt that are paired with each other: 120 pairs; of more these are chosen by hash
NO_COLUMN = "with prompt: null the prompt is what both begin with"
GIVEN_VALIDATION = 0.1  # share of the training rows that becomes a validation split that a dataset does not have


class Example(NamedTuple):
    """A prompt with its reference answer, if there is one, before it has a split."""

    place: str
    id: str
    group: str
    document: str
    summary: str | None
    split: str | None


class Answer(NamedTuple):
    """A prompt, an answer to it, and how good that is."""

    place: str
    document: str
    response: str
    score: float


class Pair(NamedTuple):
    """A preference pair."""

    place: str
    document: str
    chosen: str
    rejected: str


def examples(config: Table, seed: int, root: Path = Path(".")) -> tuple[dict[str, list[Example]], list[Problem]]:
    """Return the examples of each split, and the problems; raises `UsageError` for columns that are not there."""
    problems: list[Problem] = []
    read = list(_parsed(read_rows(config.source, config.subset, root), _example_of(config), problems))
    read = _limited(read, config.limit, seed)
    parts: dict[str, list[Example]] = {split: [] for split in ("train", "validation", "test")}
    for each in read:
        if split := _split_of(each, config, seed, problems):
            parts[split].append(each)
    if isinstance(config.splits, GivenSplits) and not parts["validation"]:
        _cut_validation(parts, seed)
    return _unique(parts, problems), sorted(problems, key=lambda problem: _in_order(problem.place))


def pairs(
    config: Preferences | Scores, seed: int, root: Path = Path(".")
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    """Return training and held-out pairs, split by a hash of the prompt, and the problems.

    Raises `UsageError` for columns that are not there, and for scores of which no two make a pair.
    """
    problems: list[Problem] = []
    parts: dict[str, list[Pair]] = {"train": [], "heldout": []}
    seen: dict[tuple[str, ...], str] = {}
    rows = read_rows(config.source, config.subset, root)
    if isinstance(config, Scores):
        read = _paired(_parsed(rows, _answer_of(config), problems), seed, problems)
        if not read and not problems:  # bad rows are named first
            where = f"{config.source} share {config.prompt!r} and differ in {config.score!r}"
            raise UsageError(f"pairs.score: no two rows of {where}; name other columns, or a source with such rows")
    else:
        read = list(_parsed(rows, _pair_of(config), problems))
    if config.limit is not None:
        read = sorted(read, key=lambda pair: fraction(seed, "row", *map(_key, pair[1:])))[: config.limit]
    for pair in read:
        key = tuple(map(_key, pair[1:]))
        if key in seen:
            problems.append(Problem(pair.place, "the same pair as another row", seen[key]))
            continue
        seen[key] = pair.place
        parts["heldout" if fraction(seed, "pair", key[0]) < config.heldout else "train"].append(pair)
    return parts, sorted(problems, key=lambda problem: _in_order(problem.place))


def refuse(problems: list[Problem], skip: bool, where: str) -> dict[str, int]:
    """Return how often each reason occurred; without `skip`, the first problem is a `ClpError` that counts the others."""
    if problems and not skip:
        first, more = (
            problems[0],
            f" (and {len(problems) - 1} more; `clp data` lists them)" if len(problems) > 1 else "",
        )
        raise ClpError(
            f"{first.place}: {first.text}{more}; mend the row, or leave bad rows out with {where}.skip_bad_rows: true"
        )
    return dict(Counter(problem.reason for problem in problems).most_common())


def fraction(*parts: object) -> float:
    """Return a number in [0, 1) that follows from the parts: what decides where a row goes, whatever other rows there are."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _parsed(found: Iterable[Row | Problem], parse: Callable[[Row], Any], problems: list[Problem]) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import track

    any_row = False
    for item in track(
        found, "Reading rows", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ):
        any_row = True
        if isinstance(item, Row):
            try:
                yield parse(item)
            except ValueError as error:
                item = Problem(item.place, str(error))
        if isinstance(item, Problem):
            problems.append(item)
    if not any_row:
        raise UsageError("the source has no rows; name one that has")


def _example_of(config: Table) -> Callable[[Row], Example]:
    fields = texts.columns_of(config.prompt) if config.prompt is not None else []
    group = config.splits.group if isinstance(config.splits, HashSplits) else None
    split = config.splits.column if isinstance(config.splits, ColumnSplits) else None

    def parse(row: Row) -> Example:
        reference: str | None = None
        if config.messages is not None:
            document, reference = transcripts.from_messages(value_of(row, config.messages, "data.messages"))
        elif config.transcript is not None:
            document, reference = transcripts.turns_of(text_of(row, config.transcript, "data.transcript"))
        else:
            assert config.prompt is not None
            values = {name: text_of(row, name, "data.prompt") for name in fields}
            document = texts.filled(config.prompt, values).strip()
        if config.reference is not None:
            given = value_of(row, config.reference, "data.reference")
            reference = None if texts.missing(given) else text_of(row, config.reference, "data.reference")
        named = row.split if split is None else str(value_of(row, split, "data.splits.column"))
        groups = document if group is None else str(value_of(row, group, "data.splits.group"))
        return Example(row.place, "", groups, document, reference, named)

    return parse


def _pair_of(config: Preferences) -> Callable[[Row], Pair]:
    def parse(row: Row) -> Pair:
        chosen, rejected = (value_of(row, name, "pairs") for name in (config.chosen, config.rejected))
        if config.prompt is None or _whole(chosen, rejected):
            document, better, worse = transcripts.implicit_prompt(chosen, rejected)
            if config.prompt is not None:
                _check_prompt(value_of(row, config.prompt, "pairs.prompt"), document)
        else:
            document = transcripts.prompt_of(value_of(row, config.prompt, "pairs.prompt"))
            _check_answers(document, chosen, rejected)
            better, worse = transcripts.answer_of(chosen, "chosen"), transcripts.answer_of(rejected, "rejected")
        found = zip((document, better, worse), ("the prompt", "chosen", "rejected"), strict=True)
        document, better, worse = (texts.text(value, name) for value, name in found)
        if better == worse:
            raise ValueError("chosen and rejected are the same")
        return Pair(row.place, document, better, worse)

    return parse


def _answer_of(config: Scores) -> Callable[[Row], Answer]:
    def parse(row: Row) -> Answer:
        prompt, response, score = (
            value_of(row, getattr(config, key), f"pairs.{key}") for key in ("prompt", "response", "score")
        )
        document, text = transcripts.prompt_of(prompt), transcripts.answer_of(response, repr(config.response))
        return Answer(row.place, document, text, texts.number(score, repr(config.score)))

    return parse


def _paired(answers: Iterable[Answer], seed: int, problems: list[Problem]) -> list[Pair]:
    """Return a pair for every two answers to a prompt that differ in their score; the place is the better one's."""
    prompts: dict[str, dict[str, Answer]] = {}
    for each in answers:
        known = prompts.setdefault(_key(each.document), {})
        first = known.setdefault(_key(each.response), each)
        if first is not each:
            problems.append(Problem(each.place, "the same prompt and answer as another row", first.place))
    made = []
    for prompt, known in prompts.items():
        kept = sorted(known, key=lambda answer: fraction(seed, "answer", prompt, answer))[:MOST_ANSWERS]
        for one, other in itertools.combinations((known[answer] for answer in kept), 2):
            if one.score != other.score:
                better, worse = (one, other) if one.score > other.score else (other, one)
                made.append(Pair(better.place, better.document, better.response, worse.response))
    return made


def _whole(chosen: Any, rejected: Any) -> bool:
    """Whether both answers are conversations that begin with their prompt, as UltraFeedback has them beside it."""
    return all(isinstance(value, list) and len(value) > 1 for value in (chosen, rejected))


def _check_prompt(prompt: Any, document: str) -> None:
    stated = transcripts.prompt_of(prompt).strip()
    if stated not in (document, document.removeprefix("Human: ")) and not document.endswith(f"Human: {stated}"):
        raise ValueError(f"chosen and rejected begin with another prompt than the prompt's column has; {NO_COLUMN}")


def _check_answers(document: str, chosen: Any, rejected: Any) -> None:
    """Raise `ValueError` for two transcripts beside a prompt: as answers they would say the prompt twice."""
    if all(isinstance(value, str) and transcripts.is_transcript(value) for value in (chosen, rejected)):
        raise ValueError(f"chosen and rejected are transcripts that begin with their prompt; {NO_COLUMN}")


def _split_of(each: Example, config: Table, seed: int, problems: list[Problem]) -> str | None:
    if isinstance(config.splits, HashSplits):
        where = fraction(seed, "split", _key(each.group))
        rest = where - config.splits.test
        return "test" if rest < 0 else "validation" if rest < config.splits.validation else "train"
    if each.split is None:
        raise UsageError("data.splits: the source has no splits of its own; use the kind hash or column")
    split = split_named(each.split)
    if split is None:
        problems.append(Problem(each.place, f"the split {each.split!r} is none of train, validation and test"))
    return split


def split_named(name: str) -> str | None:
    """Return which split a dataset's or a column's name means: train, validation or test; None for any other."""
    name = name.strip().lower()
    for suffix in ("_prefs", "_sft"):  # UltraFeedback's
        name = name.removesuffix(suffix)
    return SPLIT_NAMES.get(name)


def _cut_validation(parts: dict[str, list[Example]], seed: int) -> None:
    train = parts["train"]
    chosen = [fraction(seed, "split", _key(each.document)) < GIVEN_VALIDATION for each in train]
    parts["validation"] = [each for each, taken in zip(train, chosen, strict=True) if taken]
    parts["train"] = [each for each, taken in zip(train, chosen, strict=True) if not taken]


def _unique(parts: dict[str, list[Example]], problems: list[Problem]) -> dict[str, list[Example]]:
    seen: dict[str, tuple[str, str]] = {}
    kept: dict[str, list[Example]] = {split: [] for split in parts}
    for split in ORDER:
        for each in parts[split]:
            key = _key(each.document)
            if key in seen:
                place, other = seen[key]
                leak = f"leaks: the same prompt is in the {other} split"
                reason = leak if other != split else "the same prompt as another row"
                problems.append(Problem(each.place, reason, place))
                continue
            seen[key] = each.place, split
            identity = hashlib.sha256(key.encode()).hexdigest()[:16]
            kept[split].append(each._replace(id=identity))
    return kept


def _limited(read: list[Example], limit: int | None, seed: int) -> list[Example]:
    if limit is None or len(read) <= limit:
        return read
    order = sorted(range(len(read)), key=lambda row: (fraction(seed, "row", _key(read[row].document)), row))
    return [read[row] for row in sorted(order[:limit])]


def _key(text: str) -> str:
    """What makes two texts the same: their words, whatever space and capitals."""
    return " ".join(text.lower().split())


def _in_order(place: str) -> tuple[str, int]:
    digits = place.rstrip("0123456789")
    return digits, int(place[len(digits) :] or 0)
