"""Conversations: messages with their roles, and their text as Anthropic's hh-rlhf has it (`Human:`, `Assistant:`).

A document that came as messages, or as a transcript, is a `Conversation`: rewards, tables and pictures read its text, chat
templates its messages. Any other document is the user's words, whatever it looks like: roles are never read out of a text.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clp_lightning.data import texts

Message = Mapping[str, str]  # its role (user, assistant, system) and content
ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
NAMES = {role: name for name, role in ROLES.items()}
OTHER_NAMES = {"developer": "system", "human": "user", "gpt": "assistant"}  # ShareGPT's `from` and `value` besides
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")
_BEGINS = re.compile(r"(^|\n\n)(?=(?:Human|Assistant|System):)")


class Conversation(str):
    """A conversation as its transcript's text, with the messages that it came as.

    A line of a message that begins like a turn has a space before it in the text, so that the text has the messages' turns.
    """

    messages: list[dict[str, str]]

    def __new__(cls, messages: Sequence[Message]) -> "Conversation":
        """Join messages, each with a role among user, assistant and system, and a content."""
        kept = [{"role": each["role"], "content": each["content"].strip()} for each in messages]
        turns = [NAMES[each["role"]] + ": " + _BEGINS.sub(r"\1 ", each["content"]) for each in kept]
        self = super().__new__(cls, "\n\n".join(turns).strip())
        self.messages = kept
        return self

    def strip(self, chars: str | None = None, /) -> str:
        """Return itself: there is no space at its ends, and `str.strip` would lose the messages."""
        return self if chars is None else super().strip(chars)

    def __getnewargs__(self) -> tuple[list[dict[str, str]]]:  # type: ignore[override]  # str's own has the text
        """Make copies from the messages."""
        return (self.messages,)


def is_transcript(document: str) -> bool:
    """Whether a text is turns from its beginning, one of them a person's."""
    turns = [turn[1] for turn in _TURN.finditer(document.strip())]
    return "Human" in turns and _TURN.match(document.strip()) is not None


def from_transcript(text: str) -> str:
    """Return a text that is a transcript as a `Conversation`, any other as it is: only for data known to be transcripts."""
    if isinstance(text, Conversation) or not is_transcript(text):
        return text
    parts = _TURN.split(text.strip())
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return Conversation([{"role": ROLES[name], "content": content} for name, content in turns])


def to_messages(document: str) -> list[dict[str, str]]:
    """Return the messages (role, content) of a `Conversation`; any other text is one message of the user."""
    if isinstance(document, Conversation):
        return [dict(message) for message in document.messages]
    return [{"role": "user", "content": document.strip()}]


def from_messages(messages: Any) -> tuple[str, str | None]:
    """Return chat messages without a last answer of the assistant as a `Conversation`, and that answer.

    Raises `ValueError`, with the reason, for what is no conversation.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("expected a list of messages")
    turns: list[dict[str, str]] = []
    for number, message in enumerate(messages, 1):
        given = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        role = OTHER_NAMES.get(str(given), str(given))
        if role not in NAMES:
            raise ValueError(
                f"message {number} needs a role among {', '.join([*NAMES, 'developer'])}, but has {given!r}"
            )
        content = content_of(message, number)
        if role == "system" and texts.missing(content):
            continue  # many datasets have an empty one
        turns.append({"role": role, "content": texts.text(content, f"the content of message {number}")})
    if not turns:
        raise ValueError("expected a list of messages")
    answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if not any(turn["role"] == "user" for turn in turns):
        raise ValueError("there is no message of the user before the answer")
    return Conversation(turns), answer


def content_of(message: Mapping[str, Any], number: int) -> Any:
    """Return a message's content; of one in parts their texts, one after the other. Raises `ValueError` for other parts."""
    content = message.get("content", message.get("value"))
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"message {number} has a part of the kind {kind!r}; only texts are read")
    return "".join(part["text"] for part in content)


def split_answer(transcript: str) -> tuple[str, str]:
    """Return the `Conversation` before a transcript's last answer, and that answer; raises `ValueError` without one."""
    found = list(_TURN.finditer(transcript.strip()))
    if not found or found[-1][1] != "Assistant" or not any(turn[1] == "Human" for turn in found[:-1]):
        raise ValueError("expected Human and Assistant in turns, the assistant last")
    text = transcript.strip()
    return from_transcript(text[: found[-1].start()].strip()), text[found[-1].end() :].strip()


def turns_of(transcript: str) -> tuple[str, str | None]:
    """Return a transcript without a last answer as a `Conversation`, and that answer if it has one.

    `Assistant:` at its end asks for one. Raises `ValueError` for what is no transcript.
    """
    asked = transcript.strip().removesuffix("Assistant:").rstrip()
    found = list(_TURN.finditer(asked))
    if is_transcript(asked) and found[-1][1] == "Human":
        return from_transcript(asked), None
    return split_answer(transcript)


def prompt_of(value: Any) -> str:
    """Return a preference pair's prompt: a text, or a `Conversation` of messages or of a transcript.

    Raises `ValueError` for what is neither.
    """
    if not isinstance(value, list):
        return from_transcript(texts.text(value, "the prompt"))
    document, answer = from_messages(value)
    if answer is None:
        return document
    return Conversation([*to_messages(document), {"role": "assistant", "content": answer}])


def answer_of(value: Any, what: str) -> str:
    """Return an answer that is a text, or the only message of a list as TRL's conversational format has it."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = content_of(value[0], 1)
    if isinstance(value, list | dict):
        raise ValueError(f"{what} must be a text, or one message of the assistant")
    return texts.text(value, what)


def implicit_prompt(chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """Return prompt, chosen and rejected answer of a pair that states its prompt in both answers (TRL's implicit prompt).

    Both are transcripts, lists of messages, or texts that begin alike; raises `ValueError` when they have no prompt in common.
    """
    if isinstance(chosen, str) and isinstance(rejected, str) and not _TURN.search(chosen.strip()):
        return _common_words(chosen, rejected)
    read = split_answer if isinstance(chosen, str) else from_messages
    (prompt, better), (other, worse) = read(chosen), read(rejected)
    if prompt != other:
        raise ValueError("the two answers do not answer the same prompt")
    if better is None or worse is None:
        raise ValueError("the last message must be the assistant's")
    return prompt, better, worse


def _common_words(chosen: str, rejected: str) -> tuple[str, str, str]:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(one for one, _ in same)
    end = len(shared) if shared[-1:].isspace() else shared.rfind(" ") + 1  # a word that differs belongs to the answers
    prompt = shared[:end]
    if not prompt.strip():
        raise ValueError("the two answers begin with no prompt in common; name the prompt's column")
    return prompt.strip(), chosen[end:].strip(), rejected[end:].strip()
