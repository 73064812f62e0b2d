"""SteerablePolicy: a language model whose every row takes its own trade-off between the objectives."""

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from clp_lightning import weightings as simplex
from clp_lightning.config import Generation
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.experts import Experts
from clp_lightning.files import atomic, read_json
from clp_lightning.rollout import Prompts, Responses, Steer, response_log_probs, sample_responses

Weighting = Mapping[str, float]


@functools.lru_cache(maxsize=1)
def hardware_dtype() -> torch.dtype:
    """Return bfloat16 where the processor computes it in hardware *and* faster than float32, float32 elsewhere.

    Some processors with AVX512-bf16 multiply bfloat16 matrices at half the speed of float32 ones (docs/log.md), so on a CPU
    a layer-sized product decides, measured in turns, a few milliseconds in all.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.float32
    seconds: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    for _ in range(5):
        for dtype, times in seconds.items():
            x, w = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
            functional.linear(x, w)
            started = time.perf_counter()
            functional.linear(x, w)
            times.append(time.perf_counter() - started)
    return min(seconds, key=lambda dtype: min(seconds[dtype]))


def load_base(
    folder: Path | str, *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a transformers causal model and its tokenizer (padding on the left); a missing folder is a `ClpError`."""
    if not (Path(folder) / "config.json").is_file():
        raise ClpError(f"no model folder at {folder}; `make repro` (or `dvc repro`) writes it")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype or hardware_dtype(), local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, padding_side="left")
    return model.to(device).eval(), tokenizer


class SteerablePolicy:
    """Model, tokenizer and experts; without experts it is the reference policy."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        generation: Generation,
        *,
        objectives: Sequence[str],
        experts: Experts | None = None,
    ) -> None:
        self.model, self.tokenizer, self.generation, self.experts = model, tokenizer, generation, experts
        self.objectives = tuple(objectives)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, dtype: torch.dtype | None = None) -> "SteerablePolicy":
        """Load a folder that the pipeline wrote (`models/METHOD`); raises `ClpError` when it or its base is missing."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ClpError(f"no model folder at {folder}; `make repro` writes models/clp-full")
        card = read_json(
            folder / "clp.json", remedy="it is not a model that CLP wrote; `make repro` writes models/clp-full"
        )
        base, tokenizer = load_base(folder / card["base_model"], dtype=dtype)
        experts = Experts(
            base,
            conditioning=card["conditioning"],
            experts=len(card["objectives"]),
            rank=card["rank"],
            scaling=card["scaling"],
        )
        try:
            experts.load_tensors(safetensors.torch.load_file(folder / "experts.safetensors"))
        except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise ClpError(
                f"cannot read {folder}/experts.safetensors: {error}; run `dvc repro` to write it again"
            ) from error
        experts.to(base.device)
        generation = Generation.model_validate(card["generation"])
        return cls(base, tokenizer, generation, objectives=card["objectives"], experts=experts)

    def save(self, folder: Path | str, *, base_model: str, **extra: Any) -> None:
        """Write experts and card atomically; `base_model` is the base's folder relative to `folder`."""
        assert self.experts is not None
        card = {
            "objectives": list(self.objectives),
            "base_model": base_model,
            "conditioning": self.experts.conditioning,
            "rank": self.experts.rank,
            "scaling": self.experts.scaling,
            "generation": self.generation.model_dump(),
            **extra,
        }
        with atomic(folder) as beside:
            beside.mkdir()
            tensors = {name: tensor.contiguous() for name, tensor in self.experts.tensors().items()}
            safetensors.torch.save_file(tensors, beside / "experts.safetensors")
            (beside / "clp.json").write_text(json.dumps(card, indent=2) + "\n")

    def tokenize(self, documents: Sequence[str]) -> Prompts:
        """Fill the prompt template and tokenize; [G, P] left-padded.

        A document too long for `max_prompt_tokens` loses words at its end, never the template's tail. Raises
        `UsageError` for an empty document, with its number.
        """
        head, tail = self.generation.template.split("{document}")
        for row, document in enumerate(documents):
            if not document.strip():
                raise UsageError(f"prompt {row + 1} is empty; give some text to work on")
        encode = lambda texts: self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
        head_ids, tail_ids = (encode([part])[0] if part else [] for part in (head, tail))
        room = self.generation.max_prompt_tokens - len(head_ids) - len(tail_ids)
        rows = [head_ids + ids[:room] + tail_ids for ids in encode([text.strip() for text in documents])]
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=self.model.device)
        mask = torch.tensor(
            [[False] * (width - len(row)) + [True] * len(row) for row in rows], device=self.model.device
        )
        return Prompts(ids, mask)

    def coefficients(self, weightings: Weighting | Sequence[Weighting] | np.ndarray | None, rows: int) -> Tensor | None:
        """Return the experts' coefficients [rows, K]: one weighting for all rows, or one per row; None is the reference."""
        if weightings is None or self.experts is None:
            return None
        if isinstance(weightings, np.ndarray):
            array = weightings
        elif isinstance(weightings, Mapping):
            array = np.tile(simplex.to_array(weightings, self.objectives), (rows, 1))
        else:
            array = np.stack([simplex.to_array(weighting, self.objectives) for weighting in weightings])
        if array.shape != (rows, len(self.objectives)):
            raise UsageError(
                f"{rows} prompts but weightings of shape {array.shape}; give one weighting, or one per prompt"
            )
        return torch.as_tensor(array, dtype=torch.float32, device=self.model.device)

    def steer(self, coefficients: Tensor | None) -> Steer:
        """Return what `rollout` asks for: a context in which row `i` has the coefficients of group `groups[i]`."""

        def context(groups: Tensor) -> AbstractContextManager[None]:
            if self.experts is None:
                return nullcontext()
            return self.experts.steer(None if coefficients is None else coefficients[groups])

        return context

    def rollout(
        self,
        prompts: Prompts,
        coefficients: Tensor | None,
        *,
        samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        max_new_tokens: int | None = None,
    ) -> Responses:
        """Sample `samples` responses per prompt; see `rollout.Responses` for shapes."""
        with self._frozen():
            return sample_responses(
                self.model,
                self.steer(coefficients),
                prompts,
                samples=samples,
                max_new_tokens=max_new_tokens or self.generation.max_new_tokens,
                end_id=self.tokenizer.eos_token_id,
                pad_id=self.tokenizer.pad_token_id,
                temperature=temperature,
                generator=generator,
            )

    def score(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Tensor:
        """Return log-probabilities of responses under these coefficients, float32 [B, T]; None is the reference."""
        return response_log_probs(self.model, self.steer(coefficients), prompts, ids, mask, samples=samples)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the responses' texts, stripped of special tokens and surrounding space."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def generate(
        self,
        prompts: Sequence[str],
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        *,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Generate one response per prompt, each row with its own weighting.

        `weightings`: one dict for all, one per prompt, float [N, K], or None for the reference policy. Temperature 0 is
        greedy. Raises `UsageError` for bad weightings or an empty prompt.
        """
        if not prompts:
            raise UsageError("no prompts; give at least one text")
        coefficients = self.coefficients(weightings, len(prompts))
        generator = torch.Generator(device=self.model.device).manual_seed(seed)
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            part = None if coefficients is None else coefficients[rows]
            responses = self.rollout(
                self.tokenize(prompts[rows]),
                part,
                samples=1,
                temperature=temperature,
                generator=generator,
                max_new_tokens=max_new_tokens,
            )
            texts += self.decode(responses.ids)
        return texts

    @torch.no_grad()
    def log_probs(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
    ) -> tuple[Tensor, Tensor]:
        """Return token log-probabilities of given responses, float32 [B, T], and `response_mask` [B, T]."""
        ids, mask = self.tokenize_responses(responses)
        return self.score(self.tokenize(prompts), ids, mask, self.coefficients(weightings, len(prompts))), mask

    def tokenize_responses(self, responses: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize responses with the template's space before and the end-of-text token behind; [B, T] right-padded."""
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows = self.tokenizer([f" {text.strip()}" for text in responses], add_special_tokens=False)["input_ids"]
        rows = [[*row, end][:max_tokens] for row in rows]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor(
            [[True] * len(row) + [False] * (width - len(row)) for row in rows], device=self.model.device
        )
        return ids, mask

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        with nullcontext() if self.experts is None else self.experts.frozen():
            yield
