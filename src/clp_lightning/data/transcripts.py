"""Conversations as text, as Anthropic's hh-rlhf has them: `Human:` and `Assistant:` in turns, an empty line between.

A document that is a conversation has this form, so that rewards, tables and pictures read what people read; a chat
template gets its messages back from it (`to_messages`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clp_lightning.data import texts

ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}
NAMES = {role: name for name, role in ROLES.items()} | {"developer": "System"}
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its messages have `from` and `value` besides
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")


def is_transcript(document: str) -> bool:
    """Whether a text is turns from its beginning, one of them a person's."""
    turns = [turn[1] for turn in _TURN.finditer(document.strip())]
    return "Human" in turns and _TURN.match(document.strip()) is not None


def to_messages(document: str) -> list[dict[str, str]]:
    """Return the messages (role, content) of a transcript; a text without turns is one message of the user."""
    parts = _TURN.split(document.strip())
    if len(parts) == 1 or parts[0].strip():
        return [{"role": "user", "content": document.strip()}]
    return [{"role": ROLES[name], "content": text.strip()} for name, text in zip(parts[1::2], parts[2::2], strict=True)]


def from_messages(messages: Any) -> tuple[str, str | None]:
    """Return the transcript of chat messages without a last answer of the assistant, and that answer.

    Raises `ValueError`, with the reason, for what is no conversation or could not be told apart in a transcript.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("expected a list of messages")
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages, 1):
        role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
        role = SHAREGPT.get(str(role), role)
        if role not in NAMES:
            raise ValueError(f"message {number} needs a role among {', '.join(NAMES)}, but has {role!r}")
        content = content_of(message, number)
        if NAMES[role] == "System" and texts.missing(content):
            continue  # many datasets have an empty one
        text = texts.text(content, f"the content of message {number}")
        if _TURN.search(text):
            raise ValueError(f"message {number} has a line that begins like a turn (Human:, Assistant: or System:)")
        turns.append((NAMES[role], text))
    if not turns:
        raise ValueError("expected a list of messages")
    answer = turns.pop()[1] if turns[-1][0] == "Assistant" else None
    if not any(name == "Human" for name, _ in turns):
        raise ValueError("there is no message of the user before the answer")
    return "\n\n".join(f"{name}: {text}" for name, text in turns), answer


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
    """Return what comes before a transcript's last answer, and that answer; raises `ValueError` when there is none."""
    found = list(_TURN.finditer(transcript.strip()))
    if not found or found[-1][1] != "Assistant" or not any(turn[1] == "Human" for turn in found[:-1]):
        raise ValueError("expected Human and Assistant in turns, the assistant last")
    text = transcript.strip()
    return text[: found[-1].start()].strip(), text[found[-1].end() :].strip()


def prompt_of(value: Any) -> str:
    """Return a prompt that is a text, or a list of messages as a transcript; raises `ValueError` for what is neither."""
    if not isinstance(value, list):
        return texts.text(value, "the prompt")
    document, answer = from_messages(value)
    return document if answer is None else f"{document}\n\nAssistant: {answer}"


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
