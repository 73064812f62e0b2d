"""TokenPolicy: the steerable policy's way from prompts to tokens and their log-probabilities."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clp_lightning.config.parameters import Generation
from clp_lightning.data.transcripts import Message
from clp_lightning.errors import UsageError
from clp_lightning.policy.prompts import PromptTemplate, set_end
from clp_lightning.policy.rollout import (
    Prompts,
    Responses,
    Scores,
    Steer,
    Step,
    repeated,
    sampling_steps,
    score_responses,
    stacked,
)
from clp_lightning.steering.experts import Experts, run_length
from clp_lightning.steering.mixing import Mixture


class TokenPolicy:
    """Samples and scores tokens, each group of rows with its own coefficients [G, K] of the experts.

    `prompted` policies read their weighting in the prompt too (prompt-CLP and combinations with it). `takes_alpha` says
    that the policy was trained at many KL strengths and takes one per row. Raises `UsageError` when prompt and response
    together exceed the model's context. `mixture`, if given, decodes from several of the policy's settings at once. `listed`
    [M, K], if given, says that there is an expert for each of these weightings, and none for others. `end_ids` are the tokens
    that end a response, see `response_ends`.
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
        self.end_ids = response_ends(model, tokenizer, generation.end_token)
        context = getattr(model.config, "max_position_embeddings", None)
        self.template = PromptTemplate(tokenizer, generation, self.objectives, states_alpha=takes_alpha)
        needed = self.template.longest(prompted=prompted)
        if context is not None and needed > context:
            raise UsageError(
                f"generation: prompt and response of {needed} tokens exceed the model's context of {context}; lower "
                "generation.max_prompt_tokens or generation.max_new_tokens"
            )

    def tokenize(self, documents: Sequence[str | Sequence[Message]], coefficients: Tensor | None = None) -> Prompts:
        """Fill the prompt template and tokenize; `coefficients` [G, K] are written in if the policy is prompted."""
        written = coefficients.tolist() if self.prompted and coefficients is not None else None
        return self.template.prompts(documents, written, self.model.device)

    def tokenize_responses(self, responses: Sequence[str], max_tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize responses as the policy would write them; ids and mask [B, T], right-padded."""
        return self.template.responses(responses, max_tokens, self.model.device)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the responses' texts, stripped of special tokens and surrounding space."""
        return [self.text(row).strip() for row in ids.tolist()]

    def text(self, ids: Sequence[int]) -> str:
        """Return a response's text as it was written, without special tokens and what ends it."""
        # what ends a response need not be a special token
        kept = [token for token in ids if token not in self.end_ids]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True))

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
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        uniform: Tensor | None = None,
        max_new_tokens: int | None = None,
    ) -> Responses:
        """Sample `samples` responses per prompt; see `rollout.Responses` for shapes.

        The random numbers are `uniform`, float64 [B, T] in [0, 1), or else drawn from `generator`.
        """
        if uniform is None:
            uniform = self.random_numbers(len(prompts.ids) * samples, generator, max_new_tokens)
        return stacked(
            self.steps(prompts, coefficients, uniform, samples=samples, temperature=temperature, top_p=top_p)
        )

    def random_numbers(self, rows: int, generator: torch.Generator | None, tokens: int | None = None) -> Tensor:
        """Draw what `rows` responses are sampled with, float64 [rows, T]; T is the longest response by default.

        They are drawn on the CPU, so that a seed means the same on every device.
        """
        size = rows, tokens or self.generation.max_new_tokens
        return torch.rand(size, generator=generator, dtype=torch.float64).to(self.model.device)

    def steps(
        self,
        prompts: Prompts,
        coefficients: Tensor | None,
        uniform: Tensor,
        *,
        samples: int,
        temperature: float,
        top_p: float = 1.0,
    ) -> Iterator[Step]:
        """Yield the responses of `rollout` a token at a time, e.g. to show them while they are written."""
        prompts, coefficients, shares = self._members(prompts, coefficients)
        with nullcontext() if self.experts is None else self.experts.frozen():
            yield from sampling_steps(
                self.model,
                self.steer(coefficients),
                prompts,
                uniform,
                samples=samples,
                end_ids=self.end_ids,
                pad_id=self.tokenizer.pad_token_id,
                temperature=temperature,
                top_p=top_p,
                shares=shares,
            )

    def score(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Tensor:
        """Return log-probabilities of responses under these coefficients, float32 [B, T]; None is the reference."""
        return self.score_fully(prompts, ids, mask, coefficients, samples=samples).log_probs

    def score_fully(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Scores:
        """Return what `score` does, the prompts' last hidden states, and the logits of every position that counts."""
        prompts, coefficients, shares = self._members(prompts, coefficients)
        steer = self.steer(coefficients)
        return score_responses(self.model, steer, prompts, ids, mask, samples=samples, shares=shares)

    def _members(self, prompts: Prompts, coefficients: Tensor | None) -> tuple[Prompts, Tensor | None, Tensor | None]:
        """Return prompts, coefficients and shares of all policies that a mixture runs; the reference is no mixture."""
        if self.mixture is None or coefficients is None:
            return prompts, coefficients, None
        members, shares = self.mixture(coefficients)
        return repeated(prompts, len(members)), members.flatten(0, 1), shares


def response_ends(model: Any, tokenizer: PreTrainedTokenizerBase, end_token: str | None) -> frozenset[int]:
    """Return what ends a response: the tokenizer's end, `end_token`, and all that the model's `generation_config` names.

    From now on tokenizer and model say so too, as do the folders that they are saved to: `end_token` is the tokenizer's end,
    hence that of the texts to learn from, and `generation_config` names all. Raises `UsageError` for an unknown `end_token`.
    """
    settings = getattr(model, "generation_config", None)
    named = getattr(
        settings, "eos_token_id", None
    )  # a list where a turn and a text end differently (Llama 3, Gemma, Qwen)
    named = set(named if isinstance(named, list) else [named]) - {None}
    ends = named | {tokenizer.eos_token_id}
    if end_token is not None:
        set_end(tokenizer, end_token)
        ends.add(tokenizer.eos_token_id)
    ends.discard(None)
    if settings is not None and ends != named:
        settings.eos_token_id = sorted(ends)
    return frozenset(ends)


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text without surrounding space up to the first of the `stop` strings, and whether there is one."""
    text = text.lstrip()
    place = first_stop(text, stop)
    return text[:place].rstrip(), place is not None


def first_stop(text: str, stop: Sequence[str], start: int = 0) -> int | None:
    """Return where the `stop` string begins that is complete first, read from `start`; the longest where several end there.

    So it does not matter in which parts a text comes: what follows changes nothing.
    """
    found = [(place + len(each), place) for each in stop if (place := text.find(each, start)) >= 0]
    return min(found)[1] if found else None


def check_sampling(top_p: float, stop: Sequence[str]) -> None:
    """Raise `UsageError` for a `top_p` outside 0..1 and an empty stop string."""
    if not 0 <= top_p <= 1:
        raise UsageError(f"top_p: expected a probability from 0 to 1, but found {top_p}")
    if not all(stop):
        raise UsageError("stop: an empty text would end every answer before it begins; leave it out")
