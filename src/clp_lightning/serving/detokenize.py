"""The text of an answer while it is written, without decoding all of its tokens after each."""

from collections.abc import Callable, Sequence

SETTLED = 8  # tokens after which a piece of text is kept as it is
BYTES = 4  # of a character, hence the most tokens that one takes
UNKNOWN = "\ufffd"  # what decoders write for half a character


class Detokenizer:
    """Decodes a growing list of tokens, each of them a bounded number of times, however long the list becomes.

    A token's text depends on those before it (a space, the rest of a character), so that what is new is the difference between
    two texts that begin with the same settled tokens (as in vLLM's `detokenize_incrementally`).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._text = ""  # of the tokens before `_settled`
        self._begin, self._settled = 0, 0  # decoding begins at `_begin`, some tokens before the unsettled ones
        self._known = 0  # characters of the tokens from `_begin` to `_settled`

    def __call__(self, tokens: Sequence[int]) -> str:
        """Return the text of these tokens, which must begin with those of the call before; half a character is `UNKNOWN`."""
        window = self._decode(tokens[self._begin :])
        text = self._text + window[self._known :]
        open_end, waiting = window.endswith(UNKNOWN), len(tokens) - self._settled
        if waiting >= (3 * SETTLED if open_end else SETTLED):
            # so long no character has come to an end: these are none, and what stands before the last ones will not become one
            end = len(tokens) - (BYTES if open_end else 0)
            kept = self._decode(tokens[self._begin : end]) if open_end else window
            if window.startswith(kept):
                self._text += kept[self._known :]
                self._begin, self._settled = self._settled, end
                self._known = len(self._decode(tokens[self._begin : end]))
        return text
