"""Prompts and responses as tokens: the template, its limits, and weightings written into the prompt (prompt-CLP)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clp_lightning.config import Generation
from clp_lightning.errors import UsageError
from clp_lightning.rollout import Prompts


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

    def prompts(
        self, documents: Sequence[str], coefficients: Sequence[Sequence[float]] | None, device: torch.device | str
    ) -> Prompts:
        """Tokenize documents in the template, [G, P] left-padded; `coefficients` [G, K] are written in front if given.

        A document too long for `max_prompt_tokens` loses words at its end, never the template's tail. Raises
        `UsageError` for an empty document, with its number.
        """
        for row, document in enumerate(documents):
            if not document.strip():
                raise UsageError(f"prompt {row + 1} is empty; give some text to work on")
        head, tail, room = self._frame()
        texts = [self.written(row) for row in coefficients] if coefficients is not None else [""] * len(documents)
        written = [self._encode([text])[0] if text else [] for text in texts]
        encoded = self._encode([text.strip() for text in documents])
        rows = [w + head + ids[:room] + tail for w, ids in zip(written, encoded, strict=True)]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        return Prompts(
            torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device),
            torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device),
        )

    def left_out(self, document: str) -> int:
        """Return how many tokens at a document's end do not fit into the prompt."""
        return max(0, len(self._encode([document.strip()])[0]) - self._frame()[2])

    def responses(
        self, responses: Sequence[str], max_tokens: int | None, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Tokenize responses with the template's space before and the end-of-text token behind; ids and mask [B, T]."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows = [[*row, end][:max_tokens] for row in self._encode([f" {text.strip()}" for text in responses])]
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

    def _frame(self) -> tuple[list[int], list[int], int]:
        """Return the template's tokens before and behind the document, and the number of tokens between."""
        head, tail = (self._encode([part])[0] if part else [] for part in self.generation.template.split("{document}"))
        return head, tail, self.generation.max_prompt_tokens - len(head) - len(tail)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
