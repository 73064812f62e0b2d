"""Prompts and responses as tokens: the template, its limits, and weightings written into the prompt (prompt-CLP)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clp_lightning.config.parameters import Generation
from clp_lightning.data.transcripts import Conversation, Message, from_messages, to_messages
from clp_lightning.errors import UsageError, one_line, plural
from clp_lightning.policy.loading import check_variables
from clp_lightning.policy.rollout import Prompts

MARK = "<<the document stands here>>"  # in a rendered chat, for text that is tokenized by itself
MIN_LAST_TURN = 16  # tokens of the last turn that are kept before older turns
AT_ONCE = 1024  # documents that are tokenized together, where only their lengths are kept


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> Prompts:
    """Lay tokenized prompts side by side, [G, P], padded on the left."""
    width = max(map(len, rows))
    return Prompts(
        torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device),
        torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device),
    )


class Size(NamedTuple):
    """Tokens of a prompt with its template, without a written weighting, and how many of them do not fit."""

    tokens: int
    left_out: int


class PromptTemplate:
    """Fills the template of `generation`; `states_alpha` says whether a written weighting names its KL strength too."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        generation: Generation,
        objectives: Sequence[str],
        *,
        states_alpha: bool = False,
    ) -> None:
        self.tokenizer, self.generation, self.objectives = tokenizer, generation, tuple(objectives)
        self.states_alpha = states_alpha
        if generation.chat and not getattr(tokenizer, "chat_template", None):
            raise UsageError("generation.chat: this model's tokenizer has no chat template; set it to false")
        check_variables(tokenizer, generation.chat_template_kwargs)

    def prompts(
        self,
        documents: Sequence[str | Sequence[Message]],
        coefficients: Sequence[Sequence[float]] | None,
        device: torch.device | str,
    ) -> Prompts:
        """Tokenize documents in the template, [G, P] left-padded; `coefficients` [G, K] are written in front if given.

        A document is a text, a `Conversation` or a list of messages. One that is too long for `max_prompt_tokens` loses words
        at its end, a conversation at its start; the template stays whole. Raises `UsageError`, with its number, for an empty
        document, for messages that are none or end with an answer, and where `long_prompts` refuses for a long one.
        """
        asked = [_document(row, document) for row, document in enumerate(documents, 1)]
        texts = [self.written(row) for row in coefficients] if coefficients is not None else [""] * len(documents)
        parts = self._parts(asked, texts)
        if self.generation.long_prompts == "refuse" and any(left_out for *_, left_out in parts):
            self.check(asked)
        rows = [before + kept + behind for before, kept, behind, _ in parts]
        return padded(rows, self.tokenizer.pad_token_id, device)

    def left_out(self, document: str) -> int:
        """Return how many tokens at a document's end, or at a conversation's start, do not fit into the prompt."""
        return next(self.sizes([document])).left_out

    def sizes(self, documents: Sequence[str]) -> Iterator[Size]:
        """Yield each document's length as a prompt, and what `max_prompt_tokens` leaves out of it."""
        for start in range(0, len(documents), AT_ONCE):
            some = documents[start : start + AT_ONCE]
            for *parts, left_out in self._parts(some, [""] * len(some)):
                yield Size(sum(map(len, parts)) + left_out, left_out)

    def check(self, documents: Sequence[str | Sequence[Message]]) -> str | None:
        """Return one line on the first of the documents that are too long, with a count of the others; None if all fit.

        Where `long_prompts` refuses, the line is a `UsageError`.
        """
        asked = [_document(row, document) for row, document in enumerate(documents, 1)]
        long = [(row, size) for row, size in enumerate(self.sizes(asked), 1) if size.left_out]
        if not long:
            return None
        row, size = long[0]
        line = f"prompt {row}: {self._does_not_fit(size)}"
        more = f" (and {plural(len(long) - 1, 'more prompt')})" if len(long) > 1 else ""
        if self.generation.long_prompts == "refuse":
            raise UsageError(f"{line}{more}; shorten it, since this policy's generation.long_prompts is refuse")
        lost = "its oldest turns are" if isinstance(asked[row - 1], Conversation) else "its end is"
        return f"{line}; {lost} left out{more}"

    def count_long(self, splits: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
        """Return for each split of documents how many are too long as prompts, their tokens left out, and the longest's.

        Where `long_prompts` refuses, a prompt that is too long is a `UsageError` that names the first and counts them.
        """
        counts, first = {}, ""
        for split, documents in splits.items():
            sizes = list(self.sizes(documents))
            long = [number for number, size in enumerate(sizes) if size.left_out]
            if long and not first:
                first = f"{documents[long[0]][:60]!r} in {split} first: {self._does_not_fit(sizes[long[0]])}"
            counts[split] = {
                "prompts": len(sizes),
                "too_long": len(long),
                "tokens_left_out": sum(size.left_out for size in sizes),
                "longest": max((size.tokens for size in sizes), default=0),
            }
        if first and self.generation.long_prompts == "refuse":
            many, rows = (sum(count[name] for count in counts.values()) for name in ("too_long", "prompts"))
            raise UsageError(
                f"generation.long_prompts: refuse, and {many} of {plural(rows, 'prompt')} are too long, {first}; raise it, "
                "shorten them, or choose cut"
            )
        return counts

    def _does_not_fit(self, size: Size) -> str:
        limit = self.generation.max_prompt_tokens
        return f"{size.left_out} of its {size.tokens} tokens do not fit into generation.max_prompt_tokens ({limit})"

    def responses(
        self, responses: Sequence[str], max_tokens: int | None, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Tokenize responses with the template's space before and the end-of-text token behind; ids and mask [B, T]."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        space = "" if self.generation.chat else " "  # a chat template ends with a line of its own
        rows = [[*row, end][:max_tokens] for row in self._text_ids([space + text.strip() for text in responses])]
        width = max(map(len, rows))
        return (
            torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device),
            torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], device=device),
        )

    def written(self, coefficients: Sequence[float]) -> str:
        """A row's coefficients as a prompt states them; the reference policy's row (all 0) states nothing."""
        total = sum(coefficients)
        if total < 1e-6:
            return ""
        parts = [f"{name} {value / total:.2f}" for name, value in zip(self.objectives, coefficients, strict=True)]
        parts += [f"alpha {1 - total:.2f}"] if self.states_alpha else []
        return ", ".join(parts) + "\n"

    def longest(self, *, prompted: bool) -> int:
        """Tokens of the longest prompt and response together."""
        written = (
            self._encode([self.written([0.5 / len(self.objectives)] * len(self.objectives))])[0] if prompted else []
        )
        return len(written) + self.generation.max_prompt_tokens + self.generation.max_new_tokens

    def _parts(
        self, documents: Sequence[str], written: Sequence[str]
    ) -> list[tuple[list[int], list[int], list[int], int]]:
        """Return for each document the tokens before it, those of its own that fit, those behind it, and how many do not fit.

        What a conversation asks for stands at its end, what a text is about mostly at its beginning. The written weighting
        costs no room. It stands in front, in a chat template at the start of the last turn.
        """
        added = [self._encode([text])[0] if text else [] for text in written]
        framed = [self._frame(document) for document in documents]
        parts = []
        for document, more, (head, _, tail, gone), ids in zip(
            documents, added, framed, self._text_ids([text for _, text, _, _ in framed]), strict=True
        ):
            lost = max(0, len(ids) - max(0, self.generation.max_prompt_tokens - len(head) - len(tail)))
            kept = ids[lost:] if isinstance(document, Conversation) else ids[: len(ids) - lost]
            begin = len(head) if self.generation.chat else len(self._special[0])
            parts.append((head[:begin] + more + head[begin:], kept, tail, lost + gone))
        return parts

    def _frame(self, document: str) -> tuple[list[int], str, list[int], int]:
        """Return the tokens before a document, what is left of its text, the tokens behind it, and how many have gone."""
        if self.generation.chat:
            return self._chat(document)
        (begin, end), (head, tail) = self._special, self._template
        return begin + head, document.strip(), tail + end, 0

    def _chat(self, document: str) -> tuple[list[int], str, list[int], int]:
        """Render a conversation; the oldest turns go where it is too long."""
        messages = to_messages(document)
        last, whole = messages[-1]["content"], None
        while True:
            front, behind = self._rendered(messages)
            frame = len(front) + len(behind)
            whole = frame if whole is None else whole
            least = min(MIN_LAST_TURN, len(self._text_ids([last])[0]))
            if len(messages) == 1 or frame + least <= self.generation.max_prompt_tokens:
                return front, last, behind, whole - frame
            del messages[: 2 if messages[0]["role"] == "user" and len(messages) > 2 else 1]

    def _rendered(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Return the chat template's tokens before the last message's content and behind it.

        A message that holds a control token's text is tokenized by itself, as text: it can end no turn and begin none.
        """
        head, tail = self.generation.template.split("{document}")
        variables: dict[str, Any] = dict(self.generation.chat_template_kwargs)
        mark = MARK
        while any(mark in message["content"] for message in messages):
            mark += ">"
        apart, asked = [], []
        for message in messages[:-1]:
            content = message["content"]
            if any(token in content for token in self._control_tokens):
                apart.append(content)
                content = mark
            asked.append({"role": message["role"], "content": content})
        asked.append({"role": messages[-1]["role"], "content": f"{head}{mark}{tail}"})
        try:
            text = str(
                self.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **variables)
            )
        except Exception as error:  # the template is a program of the model's authors
            raise UsageError(f"generation.chat: the chat template refuses this prompt ({one_line(error)})") from error
        *between, before, after = text.split(mark)
        if len(between) != len(apart):
            raise UsageError(
                "generation.chat: the chat template leaves out a message, or says one twice; set it to false"
            )
        front: list[int] = []
        for part, content in zip(between, apart, strict=True):
            front += self._encode([part])[0] + self._text_ids([content])[0]
        return front + self._encode([before])[0], self._encode([after])[0]

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokenize what people wrote: a control token's name in it is text, not the token."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    @functools.cached_property
    def _control_tokens(self) -> list[str]:
        return [str(token) for token in self.tokenizer.all_special_tokens]

    @functools.cached_property
    def _template(self) -> tuple[list[int], list[int]]:
        """The template's tokens before and behind the document."""
        head, tail = (self._encode([part])[0] if part else [] for part in self.generation.template.split("{document}"))
        return head, tail

    @functools.cached_property
    def _special(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before every text (Gemma's and Llama's first token) and behind it (T5's last)."""
        bare = self._encode(["a"])[0]
        whole = self.tokenizer("a")["input_ids"]
        start = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return list(whole[:start]), list(whole[start + len(bare) :])

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _document(row: int, given: str | Sequence[Message]) -> str:
    if isinstance(given, str):
        if not given.strip():
            raise UsageError(f"prompt {row} is empty; give some text to work on")
        return given
    try:
        document, answer = from_messages(given)
    except ValueError as error:
        raise UsageError(f"prompt {row}: {error}") from error
    if answer is not None:
        raise UsageError(f"prompt {row}: the last message is the assistant's; end with what it is to answer")
    return document


def set_end(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Make `token` what ends a response; raises `UsageError` when the tokenizer has no such token."""
    if tokenizer.convert_tokens_to_ids(token) in (None, tokenizer.unk_token_id):
        raise UsageError(f"generation.end_token: the tokenizer has no token {token!r}; use null, or one that it has")
    tokenizer.eos_token = token
