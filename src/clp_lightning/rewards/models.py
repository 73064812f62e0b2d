"""Rewards and embeddings from transformers models: classifiers' logits and the cosine of mean-pooled states."""

import bisect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clp_lightning.config.rewards import MAX_TOKENS
from clp_lightning.data.transcripts import Conversation, to_messages
from clp_lightning.errors import ClpError, one_line
from clp_lightning.paths import resolve

LONGEST = 512  # tokens, where a tokenizer does not know its limit
MOST_LABELS = 8  # that a message names
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Learned:
    """A logit of a sequence-classification model, which is loaded at first use; with several logits `index` says which.

    `template` says how it reads the two texts: as a `pair` (a cross-encoder), as messages in the tokenizer's `chat` template
    (a document that is a transcript as its turns, another as the user's), or filled into a text with {document} and
    {response}. What is longer than `max_tokens`, by default what the tokenizer says and never more than the model has
    positions for, loses the end of the longer text of a pair (a conversation its start), else its front.

    Every text has the value that transformers gives it alone and unpadded, with the padding token of the model's own
    configuration: a decoder's head reads the last token that is not that.
    """

    def __init__(
        self,
        model: Path | str,
        batch_size: int = 64,
        *,
        index: int | None = None,
        template: str = "pair",
        max_tokens: int | None = None,
        allow_pickle: bool = False,
        root: Path = Path("."),
        device: str | None = None,
    ) -> None:
        self.model, self.root, self.batch_size, self.device = str(model), root, batch_size, device
        self.index, self.template, self.max_tokens, self.allow_pickle = index, template, max_tokens, allow_pickle
        self._loaded: Any = None

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return the logit of each (document, response); raises `ClpError` when the model is missing or of no use."""
        batches, tokenizer, longest = self._load()
        values = np.empty(len(documents), dtype=np.float64)
        order = np.argsort(
            [len(document) + len(response) for document, response in zip(documents, responses, strict=True)]
        )
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = [documents[row] for row in rows], [responses[row] for row in rows]
            values[rows] = batches(self._tokens(tokenizer, *texts, longest))[:, self.index].double().cpu().numpy()
        return values

    def _tokens(self, tokenizer: Any, documents: list[str], responses: list[str], longest: int) -> Any:
        """Return the texts as the tokenizer's columns, `longest` tokens at most."""
        if self.template == "pair":
            texts = fitting(tokenizer, documents, responses, longest), responses
            return tokenizer(*texts, truncation=True, max_length=longest)
        pairs = zip(documents, responses, strict=True)
        if self.template != "chat":
            filled = [_filled(self.template, document, response) for document, response in pairs]
            return tokenizer(filled, truncation=True, max_length=longest)
        turns = [_turns(document, response) for document, response in pairs]
        try:
            chats = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:  # the template is a program of the model's authors
            raise ClpError(
                f"the chat template of {self.model} refuses a conversation ({one_line(error)}); set template to pair or"
                " to a text"
            ) from error
        columns = tokenizer(chats, add_special_tokens=False, verbose=False)  # the template has written them
        starts = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        kept = [int(longest > 1 and ids[:1] != [] and ids[0] in starts) for ids in columns["input_ids"]]
        return {
            name: [
                row if len(row) <= longest else row[:start] + row[len(row) - longest + start :]
                for row, start in zip(rows, kept, strict=True)
            ]
            for name, rows in columns.items()
        }

    def _load(self) -> Any:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification

            from clp_lightning.policy.loading import chosen_device, fix_date
            from clp_lightning.rewards.batches import Batches, places

            model, tokenizer = _load(
                AutoModelForSequenceClassification, self.model, self.root, allow_pickle=self.allow_pickle
            )
            self.index = _logit(self.model, self.index, model.config)
            fix_date(tokenizer)
            if self.template == "chat" and not tokenizer.chat_template:
                raise ClpError(f"the tokenizer of {self.model} has no chat template; set template to pair or to a text")
            tokenizer.truncation_side = "right" if self.template == "pair" else "left"  # the response is at the end
            model = model.to(chosen_device(self.device))
            batches = Batches(model, tokenizer, lambda tokens: model(**tokens).logits)
            asked = self.max_tokens or min(tokenizer.model_max_length, LONGEST)
            self._loaded = batches, tokenizer, min(asked, places(model))
        return self._loaded


class Encoder:
    """Mean-pooled last hidden states of a transformers encoder, which is loaded at first use."""

    def __init__(
        self,
        model: Path | str,
        *,
        batch_size: int = 64,
        max_tokens: int = MAX_TOKENS,
        root: Path = Path("."),
        device: str | None = None,
    ) -> None:
        self.model, self.root, self.batch_size, self.max_tokens = str(model), root, batch_size, max_tokens
        self.device = device
        self._loaded: Any = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return a vector of length 1 for each text, float64 [B, H]."""
        batches, tokenizer, longest = self._load()
        unique = list(dict.fromkeys(texts))  # a sweep repeats its documents at every weighting
        parts = []
        for start in range(0, len(unique), self.batch_size):
            tokens = tokenizer(unique[start : start + self.batch_size], truncation=True, max_length=longest)
            parts.append(batches(tokens).double().cpu().numpy())
        index = {text: row for row, text in enumerate(unique)}
        return np.concatenate(parts)[[index[text] for text in texts]]

    def _load(self) -> Any:
        if self._loaded is None:
            import torch
            from torch.nn import functional
            from transformers import AutoModel

            from clp_lightning.policy.loading import chosen_device
            from clp_lightning.rewards.batches import Batches, places

            found, tokenizer = _load(AutoModel, self.model, self.root, allow_pickle=False)
            model = found.to(chosen_device(self.device))

            def pooled(tokens: dict[str, torch.Tensor]) -> torch.Tensor:
                states = model(**tokens).last_hidden_state
                mask = tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))[..., None]
                return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

            self._loaded = Batches(model, tokenizer, pooled), tokenizer, min(self.max_tokens, places(model))
        return self._loaded


class Similarity:
    """Cosine of the response's embedding and that of its document or, with `to_reference`, of its reference summary."""

    def __init__(self, encoder: Encoder, *, to_reference: bool) -> None:
        self.encoder, self.needs_references = encoder, to_reference

    def __call__(
        self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return cosines, -1 to 1."""
        others = documents if references is None else references
        return np.asarray((self.encoder(others) * self.encoder(responses)).sum(-1))


def fitting(tokenizer: Any, documents: Sequence[str], responses: Sequence[str], longest: int) -> list[str]:
    """Return the documents, of conversations as many words at the end as fit beside the response in `longest` tokens.

    A word is cut, at a character, where less than half of the room would be used without it: a long address, or a turn in a
    script without spaces. Other documents are left to the tokenizer, which cuts the end of the longer text of a pair; so it
    does with responses.
    """
    room = longest - tokenizer.num_special_tokens_to_add(pair=True)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])  # longer than it warns of

    def end(document: str, response: str) -> str:
        share = max(room - tokens(response), room // 2, 0)  # what the tokenizer, too, leaves to a longer text
        if tokens(document) <= share:
            return document

        def first(starts: Sequence[int]) -> int:
            return bisect.bisect_left(starts, -share, key=lambda start: -tokens(document[start:]))

        words = [0, *(space.start() for space in re.finditer(r"\s+", document)), len(document)]
        word = first(words)
        kept = document[words[word] :]
        if 2 * tokens(kept) >= share:
            return kept
        inside = range(words[word - 1], words[word] + 1)
        return document[inside[first(inside)] :]

    pairs = zip(documents, responses, strict=True)
    return [end(*pair) if isinstance(pair[0], Conversation) else pair[0] for pair in pairs]


def set_padding(model: Any, tokenizer: Any) -> None:
    """Make model and tokenizer agree on the padding token, which is the end of text where the tokenizer has none."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Decoders look for the last token that is none; Gemma 3 and others read a configuration of the text part.
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _turns(document: str, response: str) -> list[dict[str, str]]:
    """Return the messages of a document and the response to it."""
    turns = to_messages(document) if isinstance(document, Conversation) else [{"role": "user", "content": document}]
    if turns[-1] == {"role": "assistant", "content": ""}:  # `Assistant:` at the end waits for the response
        turns.pop()
    return [*turns, {"role": "assistant", "content": response}]


def _logit(name: str, index: int | None, config: Any) -> int:
    """Return which logit is the reward; several are of labels that only their names tell apart, so that none is the first."""
    count = config.num_labels
    if (count > 1) if index is None else (index >= count):
        labels = ", ".join(f"{number} {label}" for number, label in sorted(config.id2label.items())[:MOST_LABELS])
        more = ", ..." if count > MOST_LABELS else ""
        found = f"{count} logits ({labels}{more})" if count > 1 else "1 logit"
        raise ClpError(f"{name} has {found}; set index to the one that is the reward, from 0 for the first")
    return index or 0


def _filled(template: str, document: str, response: str) -> str:
    """Fill both texts in at once: a document may itself hold the text {response}."""
    texts = {"document": document, "response": response}
    return re.sub(r"\{(document|response)\}", lambda found: texts[found[1]], template)


def _load(kind: Any, name: str, root: Path, *, allow_pickle: bool) -> tuple[Any, Any]:
    """Load a model in evaluation mode and its tokenizer; whatever stands in the way is a one-line `ClpError`."""
    from transformers import AutoTokenizer

    found = resolve(name, root)
    local = Path(found).exists()
    # A name on the hub does not begin with the name of a folder that is here.
    if not (Path(found) / "config.json").is_file() if local else "/" in name and (root / name).parent.is_dir():
        raise ClpError(f"no reward model at {found}; run the stage reward_model (`dvc repro`), or correct the name")
    if local and not allow_pickle and not list(Path(found).glob("*.safetensors")):
        pickled = [file.name for file in Path(found).iterdir() if file.suffix in PICKLES]
        if pickled:
            raise ClpError(
                f"{found} has pickled weights only ({pickled[0]}), which can run code when they are loaded; convert them to"
                " safetensors or, if you trust them, set allow_pickle: true (kind learned)"
            )
    options: dict[str, Any] = {} if allow_pickle else {"use_safetensors": True}
    try:
        model, report = kind.from_pretrained(found, local_files_only=local, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(found, local_files_only=local)
    except Exception as error:  # of many libraries, for a file that is broken, missing or no model's
        raise ClpError(f"cannot load the model {name}: {one_line(error)}; correct its name") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes where it finds no tokenizer
        raise ClpError(f"there is no tokenizer beside the model {name}; save one with tokenizer.save_pretrained")
    heads = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if heads:  # transformers makes up what is missing, at random
        raise ClpError(f"{name} lacks {heads[0]} of {type(model).__name__}; name a model of that kind")
    return model.eval(), tokenizer
