"""Batches of texts for a transformers model, which reads each text in them as it reads it alone and unpadded."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TRIED = ("a", "a b c d e f g h i j k l m n o p")  # texts of two lengths, with which padding is tried
TRIED_TOKENS = 32
ALIKE = 1e-4  # what rounding may change between a text alone and beside padding; a half-precision model rounds more
POSITIONS = ("position_embeddings", "wpe", "embed_positions", "positions_embed")  # what transformers calls the tables


class Batches:
    """Reads tokenized texts; `read` maps a model's inputs to a row for each text, [B, ...].

    Padding stands on the right, whatever side the tokenizer names: no text's positions move, and causal models do not look
    behind a text's end. A model whose values change beside padding (it is tried once) gets texts of one length at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, read: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self.model, self.tokenizer, self.read = model, tokenizer, read
        self.pads = True
        self.padding = Padding(model, tokenizer)
        self.pads = self._reads_beside_padding()

    def __call__(self, texts: Mapping[str, Sequence[Sequence[int]]]) -> Tensor:
        """Return the rows of texts, as a tokenizer gives them without padding."""
        rows = self.padding.rows(texts)
        by_length = not self.pads or not self.padding.possible(rows["input_ids"])
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, ids in enumerate(rows["input_ids"]):
            groups[len(ids) if by_length else 0, self._ends(ids)].append(number)
        parts = [
            self._run({name: [column[at] for at in numbers] for name, column in rows.items()})
            for numbers in groups.values()
        ]
        order = torch.tensor([number for numbers in groups.values() for number in numbers])
        return torch.cat(parts)[order.argsort()]

    def _run(self, rows: Mapping[str, Sequence[Sequence[int]]]) -> Tensor:
        with torch.inference_mode():
            return self.read(self.padding.tensors(rows))

    def _ends(self, ids: Sequence[int]) -> int:
        """Count the end tokens of a text for BART and its like, which refuse batches in which texts differ in it."""
        config = self.model.config
        return list(ids).count(config.eos_token_id) if getattr(config, "is_encoder_decoder", False) else 0

    def _reads_beside_padding(self) -> bool:
        """Whether padding changes no value; it does where layers mix neighbours (FNet) or a head reads the last place (XLNet)."""
        texts = self.tokenizer(list(TRIED), truncation=True, max_length=TRIED_TOKENS)
        rows = self.padding.rows(texts)
        short = {name: column[:1] for name, column in rows.items()}
        alone, beside = self._run(short), self(texts)[:1]
        finest = max(ALIKE, 20 * torch.finfo(self.model.dtype).eps)
        return bool(((alone - beside).abs() <= finest * (1 + alone.abs())).all())


class Padding:
    """Lays tokenized texts side by side, padded on the right with what the model takes for padding, if anything.

    Decoders with a classifier's head read the last token that is not their configuration's padding token. One that has none
    reads the last; it is told a token that ends no text of the batch.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.names = inspect.signature(model.forward).parameters
        self.vocabulary = model.get_input_embeddings().num_embeddings
        pad = model.config.get_text_config().pad_token_id
        self.pad = pad if pad is not None and 0 <= pad < self.vocabulary else None  # some are published with -1

    def rows(self, texts: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, list[list[int]]]:
        """Return what the model takes of a tokenizer's columns; a text without tokens becomes a start or end of text."""
        tokenizer = self.tokenizer
        tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        lone = next(token for token in tokens if token is not None)
        ids = [list(row) or [lone] for row in texts["input_ids"]]
        columns = {"input_ids": ids}
        if "token_type_ids" in texts and "token_type_ids" in self.names:
            columns["token_type_ids"] = [list(row) or [0] for row in texts["token_type_ids"]]
        if "attention_mask" in self.names:
            columns["attention_mask"] = [[1] * len(row) for row in ids]
        return columns

    def possible(self, ids: Sequence[Sequence[int]]) -> bool:
        """Whether there is a token to pad with."""
        return self._fill(ids) >= 0

    def tensors(self, rows: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
        """Return a model's inputs, [B, L] each, on its device."""
        fill = self._fill(rows["input_ids"])
        if self.pad is None:
            self.model.config.get_text_config().pad_token_id = fill
        fills = {"input_ids": fill, "token_type_ids": self.tokenizer.pad_token_type_id}
        width = max(map(len, rows["input_ids"]))
        return {
            name: torch.tensor([[*row, *[fills.get(name, 0)] * (width - len(row))] for row in column]).to(
                self.model.device
            )
            for name, column in rows.items()
        }

    def _fill(self, ids: Sequence[Sequence[int]]) -> int:
        """Return the token to pad with; -1 where a small vocabulary has none left, which does for texts of one length."""
        if self.pad is not None:
            return self.pad
        ends = {row[-1] for row in ids}
        own = self.tokenizer.pad_token_id
        free = (token for token in (own, *range(self.vocabulary)) if token is not None and token not in ends)
        return next(free, -1)


def places(model: Any) -> float:
    """Return how many tokens a model's table of positions has places for; infinity where positions are computed."""
    sizes = [
        module.num_embeddings - getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in POSITIONS
    ]
    return min(sizes, default=float("inf"))
