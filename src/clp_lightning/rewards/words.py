"""What a word is, in any script: for rewards and monitors that count words or compare them."""

import unicodedata
from typing import Any

import regex

# Letters of scripts that write no spaces between words: each counts as a word, with the marks that belong to it.
_ALONE = r"[\p{L}&&[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_TOKEN = regex.compile(rf"{_ALONE}\p{{M}}*|(?:(?!{_ALONE})[\p{{L}}\p{{M}}\p{{N}}])+", regex.V1)
_PART = regex.compile(rf"{_ALONE}\p{{M}}*|(?:(?!{_ALONE}).)+", regex.V1 | regex.DOTALL)


def words(text: str) -> list[str]:
    """Return what stands between white space; of scripts without spaces (Chinese, Japanese, Thai ...) each character."""
    return [part for word in text.split() for part in ([word] if word.isascii() else _PART.findall(word))]


class Tokenizer:
    """Words for ROUGE: those of rouge-score for ASCII, and of other texts what its own leaves out or cuts apart.

    Case and the ways to write one character (NFC) make no difference. The stemmer is for English: it gets ASCII words alone.
    """

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._ascii: Any = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Return lower-case words without punctuation; those of more than three letters are stemmed, as rouge-score does."""
        if text.isascii():
            return list(self._ascii.tokenize(text))
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
        found = (self._ascii.tokenize(word) if word.isascii() else [word] for word in _TOKEN.findall(folded))
        return [word for part in found for word in part]
