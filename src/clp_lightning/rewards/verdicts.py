"""What a judge's answer says, in the forms in which models write one: A, B or a tie, or nothing that can be read.

An answer may think first, dress its letter up, or explain itself; what names both letters as its verdict is not read.
"""

import re
from typing import NamedTuple

LONGEST_QUOTE = 80  # characters of an answer in a message: its start and its end, where a verdict stands

_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
# Chat templates that open the thoughts themselves leave the end alone in the answer, or nothing of it if it was cut.
_END_OF_THOUGHTS = re.compile(r".*</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHTS = re.compile(r"<(?:think|thinking|reasoning)>", re.IGNORECASE)

_LETTER = r"(?P<letter>A|B|(?:a\s+)?tie)"
_MARKED = re.compile(
    rf"\\boxed\s*\{{\s*(?:\\text\w*\s*\{{)?\s*{_LETTER}\s*\}}|\[\[\s*{_LETTER.replace('letter', 'listed')}\s*\]\]"
    rf"|<(?P<tag>answer|verdict)>\s*{_LETTER.replace('letter', 'tagged')}\s*</(?P=tag)>",
    re.IGNORECASE,
)
_DRESS = re.compile(
    r"\\(?:boxed|text\w*|math\w*)\b|</?(?:answer|verdict)>|[\s*_`\"'“”‘’«»()\[\]{}$\\#]+", re.IGNORECASE
)
_NOUN = r"(?:answer|verdict|choice|decision|judge?ment|preference|reply|winner)"
_STATED = re.compile(
    rf"(?i:(?:(?:so|thus|hence|therefore|overall),?\s+)?(?:(?:my|the)\s+)?(?:(?:final|better|best|preferred)\s+)*{_NOUN})"
    rf"(?i:\s+is\s*:|\s*[:=]|(?P<said>\s+is))\s*(?i:(?:answer|option)\s+)?(?i:{_LETTER})(?i:,?\s+(?:because|since)\b.*)?"
)
_BARE = re.compile(rf"(?:(?:answer|option)\s+)?{_LETTER}", re.IGNORECASE)
_BETTER = re.compile(
    r"(?:answer\s+)?(?P<letter>A|B) is (?:the )?(?:better|best|winner)(?: answer| one)?", re.IGNORECASE
)
_TIED = re.compile(r"it(?: is|'s| s) (?P<letter>a tie)", re.IGNORECASE)
_SENTENCES = re.compile(r"\n+|(?<=[.!?])\s+")


class Reading(NamedTuple):
    """What an answer says: A, B or TIE, or None and why (`cut`, `two` or `other`), with a quote of it for a message."""

    verdict: str | None
    why: str
    quote: str


def read(answer: str, *, cut: bool = False) -> Reading:
    """Return an answer's verdict; `cut` says that the server ended it at the limit of tokens.

    A verdict that is stated (`Answer: A`, a box, a tag) counts wherever it stands, a letter alone only as the whole answer or
    as its last line: earlier it may be a heading. Two different ones make an answer unreadable.
    """
    text = _END_OF_THOUGHTS.sub("", _THOUGHTS.sub("", answer))
    if _OPEN_THOUGHTS.search(text):
        return Reading(None, "cut", _quoted(answer))
    found = [name for marked in _MARKED.finditer(text) for name in marked.group("letter", "listed", "tagged") if name]
    sentences = [plain for part in _SENTENCES.split(text) if (plain := _plain(part))]
    stated = [match for plain in sentences if (match := _STATED.fullmatch(plain))]
    found += [
        match["letter"] for match in stated if not (match["said"] and match["letter"] == "a")
    ]  # "is a ..." goes on
    lines = [plain for part in text.splitlines() if (plain := _plain(part))]
    if lines and not (cut and len(lines) > 1):  # what was cut does not end there
        ends = _BARE.fullmatch(lines[-1]), _BETTER.fullmatch(sentences[-1]), _TIED.fullmatch(sentences[-1])
        found += [end["letter"] for end in ends if end]
    verdicts = {name.upper().split()[-1] for name in found}  # "a tie" is a tie
    if len(verdicts) == 1:
        return Reading(verdicts.pop(), "", "")
    return Reading(None, "two" if verdicts else "cut" if cut else "other", _quoted(answer))


def _plain(text: str) -> str:
    """Return a line without what dresses it up: quotation marks, brackets, Markdown, TeX, the full stop at its end."""
    return _DRESS.sub(" ", text).strip().strip(".,;:!").strip()


def _quoted(text: str) -> str:
    text, half = text.strip(), LONGEST_QUOTE // 2
    return repr(text if len(text) <= LONGEST_QUOTE else f"{text[:half]} ... {text[-half:]}")
