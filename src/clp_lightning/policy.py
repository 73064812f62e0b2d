"""SteerablePolicy: a language model whose every row takes its own trade-off between the objectives."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clp_lightning import policy_files
from clp_lightning import weightings as simplex
from clp_lightning.config import Generation
from clp_lightning.config_data import Quantization
from clp_lightning.errors import UsageError
from clp_lightning.experts import Experts, run_length
from clp_lightning.export import export
from clp_lightning.loading import quantization_of
from clp_lightning.mixing import Mixture
from clp_lightning.prompts import PromptTemplate, set_end
from clp_lightning.rollout import Prompts, Responses, Steer, Step, repeated, response_log_probs, sampling_steps, stacked

Weighting = Mapping[str, float]


class SteerablePolicy:
    """Model, tokenizer and experts; without experts it is the reference policy.

    `prompted` policies read their weighting in the prompt too (prompt-CLP and combinations with it). `takes_alpha` says
    that the policy was trained at many KL strengths and takes one per row. Raises `UsageError` when prompt and response
    together exceed the model's context. `mixture`, if given, decodes from several of the policy's settings at once. `listed`
    [M, K], if given, says that there is an expert for each of these weightings, and none for others.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        generation: Generation,
        *,
        objectives: Sequence[str],
        experts: Experts | None = None,
        prompted: bool = False,
        takes_alpha: bool = False,
        mixture: Mixture | None = None,
        listed: np.ndarray | None = None,
    ) -> None:
        self.model, self.tokenizer, self.generation, self.experts = model, tokenizer, generation, experts
        self.objectives, self.prompted, self.takes_alpha = tuple(objectives), prompted, takes_alpha
        self.mixture, self.listed = mixture, listed
        if generation.end_token is not None:
            set_end(tokenizer, generation.end_token)
        context = getattr(model.config, "max_position_embeddings", None)
        self.template = PromptTemplate(tokenizer, generation, self.objectives, states_alpha=takes_alpha)
        needed = self.template.longest(prompted=prompted)
        if context is not None and needed > context:
            raise UsageError(
                f"generation: prompt and response of {needed} tokens exceed the model's context of {context}; lower "
                "generation.max_prompt_tokens or generation.max_new_tokens"
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        quantization: Quantization | Literal["as trained"] | None = "as trained",
        mixture: Mixture | None = None,
    ) -> "SteerablePolicy":
        """Load a folder that the pipeline wrote (`models/METHOD`); raises `ClpError` when it or its base is missing.

        The base model is quantized as it was in training, unless `quantization` says otherwise.
        """
        parts = policy_files.read(Path(folder), dtype=dtype, device=device, quantization=quantization)
        return cls(**parts, mixture=mixture)

    def save(self, folder: Path | str, *, base_model: str, **extra: Any) -> None:
        """Write experts and card atomically; `base_model` is the base's folder relative to `folder`."""
        assert self.experts is not None
        card = {
            "objectives": list(self.objectives),
            "base_model": base_model,
            "prompted": self.prompted,
            "takes_alpha": self.takes_alpha,
            "listed": None if self.listed is None else self.listed.tolist(),
            "quantization": quantization_of(self.model),
            "generation": self.generation.model_dump(),
        }
        policy_files.write(Path(folder), self.experts, card | extra)

    def tokenize(self, documents: Sequence[str], coefficients: Tensor | None = None) -> Prompts:
        """Fill the prompt template and tokenize; `coefficients` [G, K] are written in if the policy is prompted."""
        written = coefficients.tolist() if self.prompted and coefficients is not None else None
        return self.template.prompts(documents, written, self.model.device)

    def tokenize_responses(self, responses: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize responses as the policy would write them; ids and mask [B, T], right-padded."""
        return self.template.responses(responses, max_tokens, self.model.device)

    def coefficients(
        self,
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        rows: int,
        alphas: float | Sequence[float] | np.ndarray | None = None,
    ) -> Tensor | None:
        """Return the experts' coefficients `(1 - alpha) w`, [rows, K]: one weighting (and alpha) for all rows, or one each.

        None is the reference policy, and so is `alpha = 1`. A policy trained at one KL strength takes no alphas. One with an
        expert per listed weighting gives one-hot rows [rows, M].
        """
        if weightings is None or self.experts is None:
            return None
        array = simplex.to_rows(weightings, rows, self.objectives)
        if self.listed is not None:
            array = simplex.which(array, self.listed, self.objectives)
        if alphas is not None:
            if not self.takes_alpha:
                raise UsageError("alpha: this policy was trained at one KL strength and takes none; leave it out")
            array = array * (1 - simplex.alphas(alphas, rows))[:, None]
        return torch.as_tensor(array, dtype=torch.float32, device=self.model.device)

    def materialize(self, weighting: Weighting | np.ndarray, *, alpha: float | None = None) -> "SteerablePolicy":
        """Fold one weighting into the model and return it as a plain policy; this policy's own model is consumed.

        A prompted policy still needs its weighting in the prompt: see `PromptTemplate.written`.
        """
        assert self.experts is not None
        self.experts.merge(self.model, self._one(weighting, alpha))
        return SteerablePolicy(self.model, self.tokenizer, self.generation, objectives=self.objectives)

    def export(
        self, weighting: Weighting | np.ndarray, out_dir: Path | str, format: str = "hf", *, alpha: float | None = None
    ) -> None:
        """Write one weighting as a plain checkpoint ("hf") or an adapter ("peft"); "hf" consumes this policy's model.

        transformers and peft load the folder without this package. `clp_export.json` in it names the weighting, and what
        a prompted policy's prompts must begin with. Raises `UsageError` for bad weightings, formats and policies.
        """
        if self.experts is None:
            raise UsageError("this policy has no experts: it is a plain model folder already")
        coefficients = self._one(weighting, alpha)
        row = coefficients.tolist()
        note = {
            "objectives": list(self.objectives),
            "coefficients": row,
            "template": self.generation.template,
            "chat": self.generation.chat,
            "prompt_begins_with": self.template.written(row) if self.prompted else "",
            "quantization": quantization_of(self.model),
        }
        export(self.model, self.tokenizer, self.experts, coefficients, out_dir, format=format, note=note)

    def _one(self, weighting: Weighting | np.ndarray, alpha: float | None) -> Tensor:
        """Return one row of coefficients [K]."""
        coefficients = self.coefficients(weighting[None] if isinstance(weighting, np.ndarray) else weighting, 1, alpha)
        assert coefficients is not None
        return coefficients[0]

    def steer(self, coefficients: Tensor | None) -> Steer:
        """Return what `rollout` asks for: a context in which row `i` has the coefficients of group `groups[i]`."""

        def context(groups: Tensor) -> AbstractContextManager[None]:
            if self.experts is None:
                return nullcontext()
            if coefficients is None:
                return self.experts.steer(None)
            repeats = run_length(groups) if self.experts.rank == "full" else 1  # on a GPU, asking waits for it
            return self.experts.steer(coefficients[groups], repeats=repeats)

        return context

    def rollout(
        self,
        prompts: Prompts,
        coefficients: Tensor | None,
        *,
        samples: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        max_new_tokens: int | None = None,
    ) -> Responses:
        """Sample `samples` responses per prompt; see `rollout.Responses` for shapes.

        The random numbers are `uniform`, float64 [B, T] in [0, 1), or else drawn from `generator`.
        """
        if uniform is None:
            uniform = self.random_numbers(len(prompts.ids) * samples, generator, max_new_tokens)
        return stacked(self.steps(prompts, coefficients, uniform, samples=samples, temperature=temperature))

    def random_numbers(self, rows: int, generator: torch.Generator | None, tokens: int | None = None) -> Tensor:
        """Draw what `rows` responses are sampled with, float64 [rows, T]; T is the longest response by default."""
        size = rows, tokens or self.generation.max_new_tokens
        return torch.rand(size, generator=generator, device=self.model.device, dtype=torch.float64)

    def steps(
        self, prompts: Prompts, coefficients: Tensor | None, uniform: Tensor, *, samples: int, temperature: float
    ) -> Iterator[Step]:
        """Yield the responses of `rollout` a token at a time, e.g. to show them while they are written."""
        prompts, coefficients, shares = self._members(prompts, coefficients)
        with self._frozen():
            yield from sampling_steps(
                self.model,
                self.steer(coefficients),
                prompts,
                uniform,
                samples=samples,
                end_id=self.tokenizer.eos_token_id,
                pad_id=self.tokenizer.pad_token_id,
                temperature=temperature,
                shares=shares,
            )

    def score(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Tensor:
        """Return log-probabilities of responses under these coefficients, float32 [B, T]; None is the reference."""
        return self.score_and_states(prompts, ids, mask, coefficients, samples=samples)[0]

    def score_and_states(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return what `score` does, and the last hidden state of each prompt [G, H], for learned baselines."""
        prompts, coefficients, shares = self._members(prompts, coefficients)
        steer = self.steer(coefficients)
        return response_log_probs(self.model, steer, prompts, ids, mask, samples=samples, shares=shares)

    def _members(self, prompts: Prompts, coefficients: Tensor | None) -> tuple[Prompts, Tensor | None, Tensor | None]:
        """Return prompts, coefficients and shares of all policies that a mixture runs; the reference is no mixture."""
        if self.mixture is None or coefficients is None:
            return prompts, coefficients, None
        members, shares = self.mixture(coefficients)
        return repeated(prompts, len(members)), members.flatten(0, 1), shares

    def decode(self, ids: Tensor) -> list[str]:
        """Return the responses' texts, stripped of special tokens and surrounding space."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def generate(
        self,
        prompts: Sequence[str],
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        *,
        alphas: float | Sequence[float] | np.ndarray | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Generate one response per prompt, each row with its own weighting.

        `weightings`: one dict for all, one per prompt, float [N, K], or None for the reference policy. `alphas`: KL
        strengths (0..1), for a policy that takes them. Temperature 0 is greedy. Raises `UsageError` for bad weightings or
        an empty prompt.
        """
        if not prompts:
            raise UsageError("no prompts; give at least one text")
        coefficients = self.coefficients(weightings, len(prompts), alphas)
        generator = torch.Generator(device=self.model.device).manual_seed(seed)
        texts: list[str] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            part = None if coefficients is None else coefficients[rows]
            responses = self.rollout(
                self.tokenize(prompts[rows], part),
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
        *,
        alphas: float | Sequence[float] | np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return token log-probabilities of given responses, float32 [B, T], and `response_mask` [B, T]."""
        ids, mask = self.tokenize_responses(responses)
        coefficients = self.coefficients(weightings, len(prompts), alphas)
        return self.score(self.tokenize(prompts, coefficients), ids, mask, coefficients), mask

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        with nullcontext() if self.experts is None else self.experts.frozen():
            yield
