"""Rewards that count in the text itself: length, patterns, readability, and overlap with the reference summary."""

import re
from collections.abc import Sequence

import numpy as np
import regex

from clp_lightning.config.rewards import LengthReward, RegexReward
from clp_lightning.errors import ClpError
from clp_lightning.rewards.words import Tokenizer, words

REGEX_SECONDS = 1.0  # for one response: a pattern that backtracks may take years on a long one
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")
# The e of endings that are not spoken (file, files, named), unlike those of table, boxes and deleted.
_SILENT = re.compile(r"(?<![^aeiouy]l)(?<![aeiouy])(?:e|(?<![sxzcg])(?<!ch)(?<!sh)es|(?<![td])ed)$")


class Brevity:
    """Minus the number of words, never above `-min_words`: an answer shorter than that gains nothing."""

    def __init__(self, min_words: int) -> None:
        self.min_words = min_words

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Count words (`words.words`)."""
        return -np.maximum([len(words(response)) for response in responses], self.min_words).astype(np.float64)


class Length:
    """Minus what a response's length differs from `target` beyond `tolerance`, or minus what it has above `max`."""

    def __init__(self, section: LengthReward) -> None:
        self.section = section

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Count words (`words.words`), or characters without the white space around the response."""
        by_word = self.section.unit == "words"
        counts = np.array([len(words(text) if by_word else text.strip()) for text in responses], dtype=np.float64)
        if self.section.max is not None:
            return np.minimum(0.0, self.section.max - counts)
        return np.minimum(0.0, self.section.tolerance - np.abs(counts - (self.section.target or 0)))


class Pattern:
    """`found` for responses in which a regular expression is found, times its matches with `count`, else `otherwise`."""

    def __init__(self, section: RegexReward) -> None:
        self.section, self.compiled = section, regex.compile(section.pattern)

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Search each response for at most `REGEX_SECONDS`; raises `ClpError` when that is too short."""
        return np.array([self._value(response) for response in responses], dtype=np.float64)

    def _value(self, response: str) -> float:
        try:
            if self.section.count:
                matches = len(self.compiled.findall(response, timeout=REGEX_SECONDS))
            else:
                matches = int(self.compiled.search(response, timeout=REGEX_SECONDS) is not None)
        except TimeoutError:
            raise ClpError(
                f"the pattern takes more than {REGEX_SECONDS:g} s on {response[:60]!r}; use one without nested repetitions"
            ) from None
        return self.section.found * matches if matches else self.section.otherwise


class Readability:
    """Flesch's reading ease (1948, A new readability yardstick) of English text, cut off at 0 and 100; 0 of no words.

    206.835 - 1.015 words per sentence - 84.6 syllables per word.
    """

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Score each response by itself."""
        return np.array([reading_ease(response) for response in responses], dtype=np.float64)


class Rouge:
    """ROUGE's F-measure (Lin 2004), stemmed, of the response and the reference summary."""

    needs_references = True

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def __call__(self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Compare each response with its reference."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.metric], tokenizer=Tokenizer())
        scores = [scorer.score(a, b)[self.metric].fmeasure for a, b in zip(references, responses, strict=True)]
        return np.array(scores, dtype=np.float64)


def reading_ease(text: str) -> float:
    """Return Flesch's reading ease of a text; what ends without a full stop is a sentence too."""
    found = _WORD.findall(text)
    if not found:
        return 0.0
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    ease = 206.835 - 1.015 * len(found) / sentences - 84.6 * sum(map(syllables, found)) / len(found)
    return min(100.0, max(0.0, ease))


def syllables(word: str) -> int:
    """Return about how many syllables an English word has: its groups of vowels but for a silent e, at least 1."""
    lower = word.lower()
    return max(1, len(_VOWELS.findall(lower)) - bool(_SILENT.search(lower)))
