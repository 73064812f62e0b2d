"""The testbed: prompts of the corpus, a few dozen words that the reference policy may answer with, and rewards of them.

Shapes: P prompts, N words, K objectives, G groups (one prompt, one weighting), S samples of each.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from clp_lightning.config.parameters import Generation
from clp_lightning.errors import UsageError
from clp_lightning.oracle.exact import Array, Problem
from clp_lightning.policy.head import logits_of
from clp_lightning.policy.prompts import PromptTemplate
from clp_lightning.policy.rollout import Prompts, Responses, Scores, draw
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts

OBJECTIVES = ("fit", "short", "specific")
MOST_PROBABLE = 0.1  # a word with more would make most groups of four answers all equal: "The" has half of the mass


class Bed:
    """The reference policy's prompts, words and rewards; all that does not change in a training is computed once.

    Experts act on the last `steered` tokens of a prompt; what is before them is read once, by the reference policy.
    `counts` says how often a lower-case word occurs in the corpus; words that do not are not allowed. Raises `UsageError`
    when the model knows too few words.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        generation: Generation,
        documents: Sequence[str],
        counts: Mapping[str, int],
        *,
        words: int,
        steered: int = 1,
    ) -> None:
        self.model, self.tokenizer, self.steered = model, tokenizer, steered
        self.generation = generation.model_copy(update={"max_new_tokens": 1})
        self.prompts = PromptTemplate(tokenizer, self.generation, OBJECTIVES).prompts(documents, None, model.device)
        self.positions = (self.prompts.mask.long().cumsum(-1) - 1).clamp(min=0)
        self.past = self._read_beginnings()
        everything = torch.arange(len(documents))
        with torch.no_grad():
            probable = logits_of(model, self.hidden(everything))[:, 0].softmax(-1).mean(0)
        ids, self.words = _allowed(probable, tokenizer, counts, words)
        embeddings: Tensor = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        head = nn.Linear(embeddings.shape[1], words, bias=False)
        output: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(output.weight[ids].detach().clone(), requires_grad=False)
        model.set_output_embeddings(head)
        with torch.no_grad():
            self.ref_log_probs = self.log_probs(everything)  # float32 [P, N]
        rewards = np.stack([self._fit(embeddings, ids), *_of_words(self.words, counts, len(documents))], axis=-1)
        self.rewards = standardized(rewards, exactly(self.ref_log_probs))  # [P, N, K]
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def hidden(self, prompts: Tensor) -> Tensor:
        """Return the last hidden states [G, 1, H] of prompts [G], with whatever steers the model now."""
        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(self.past):
            cache.update(keys[prompts], values[prompts], layer)
        last = slice(-self.steered, None)
        return self.model.base_model(
            input_ids=self.prompts.ids[prompts][:, last],
            attention_mask=self.prompts.mask[prompts].long(),
            position_ids=self.positions[prompts][:, last],
            past_key_values=cache,
            use_cache=True,
        )[0][:, -1:]

    def log_probs(self, prompts: Tensor) -> Tensor:
        """Return log-probabilities of the allowed words, float32 [G, N], with whatever steers the model now."""
        return functional.log_softmax(logits_of(self.model, self.hidden(prompts))[:, 0], dim=-1)

    def problem(self, alpha: float) -> Problem:
        """Return what is known about the testbed at a KL strength."""
        return Problem(exactly(self.ref_log_probs), self.rewards, alpha)

    def reward(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Look rewards [B, K] up; a document is the number of its prompt."""
        return self.rewards[[int(each) for each in documents], [self.numbers[each] for each in responses]]

    @contextmanager
    def policy(self, *, conditioning: str, shared: Any, rank: Any, seed: int) -> Iterator["OneTokenPolicy"]:
        """Lend the model to a policy with new experts; afterwards it is the reference policy's again."""
        experts = Experts(
            self.model, conditioning=conditioning, experts=len(OBJECTIVES), rank=rank, shared=shared, seed=seed
        )
        try:
            yield OneTokenPolicy(self, experts)
        finally:
            experts.detach(self.model)

    @torch.no_grad()
    def _read_beginnings(self) -> list[tuple[Tensor, Tensor]]:
        """Return the reference policy's keys and values [P, heads, tokens, width] of every layer."""
        ids, mask = self.prompts.ids[:, : -self.steered], self.prompts.mask
        if not ids.shape[1]:
            return []
        cache = DynamicCache(config=self.model.config)
        self.model.base_model(
            input_ids=ids,
            attention_mask=mask[:, : -self.steered].long(),
            position_ids=self.positions[:, : -self.steered],
            past_key_values=cache,
            use_cache=True,
        )
        return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc, union-attr]

    def _fit(self, embeddings: Tensor, ids: Tensor) -> Array:
        """Return how much better a word goes with this prompt than with the others, [P, N].

        It is the cosine of its and the mean of the prompt's input embeddings (less the vocabulary's mean), less the mean over
        prompts, so that no word is good everywhere.
        """
        centered = embeddings - embeddings.mean(0)
        mask = self.prompts.mask.float()
        prompts = (centered[self.prompts.ids] * mask[..., None]).sum(1)
        cosines = functional.cosine_similarity(prompts[:, None], centered[ids][None], dim=-1)
        return (cosines - cosines.mean(0)).double().numpy()


class OneTokenPolicy(SteerablePolicy):
    """A policy whose answers can all be enumerated; a document is the number of its prompt, a token that of its word."""

    own: tuple[Tensor, Tensor]  # the coefficients [G, K] of the last rollout, and the policy's log-probabilities [G, N]

    def __init__(self, bed: Bed, experts: Experts) -> None:
        super().__init__(bed.model, bed.tokenizer, bed.generation, objectives=OBJECTIVES, experts=experts)
        self.bed = bed

    def read(self, prompts: Tensor, coefficients: Tensor | None) -> Tensor:
        """Return log-probabilities [G, N] of every word, differentiable; prompts are numbers [G]."""
        assert self.experts is not None
        if coefficients is None:
            return self.bed.ref_log_probs[prompts]
        with self.experts.steer(coefficients):
            return self.bed.log_probs(prompts)

    def tokenize(self, documents: Sequence[Any], coefficients: Tensor | None = None) -> Prompts:
        """Return the numbers of prompts, [G, 1]."""
        ids = torch.tensor([[int(each)] for each in documents])
        return Prompts(ids, torch.ones_like(ids, dtype=torch.bool))

    @torch.enable_grad()
    def rollout(self, prompts: Prompts, coefficients: Tensor | None, *, samples: int, **options: Any) -> Responses:
        """As in `SteerablePolicy`, each answer an independent draw among the allowed words."""
        assert coefficients is not None
        self.own = coefficients, self.read(prompts.ids[:, 0], coefficients)
        scores = self.own[1].detach().repeat_interleave(samples, dim=0)
        ids = draw(scores, options["uniform"][:, :1])[:, None]
        return Responses(ids, torch.ones_like(ids, dtype=torch.bool), scores.gather(-1, ids))

    def score_fully(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Scores:
        """As in `SteerablePolicy`; states, which no method here uses, are 0."""
        known = coefficients is not None and coefficients is self.own[0]
        log_probs = self.own[1] if known else self.read(prompts.ids[:, 0], coefficients)
        rows = log_probs.repeat_interleave(samples, dim=0)
        return Scores(rows.gather(-1, ids), torch.zeros(len(prompts.ids), 1), rows)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the words."""
        return [self.bed.words[number] for number in ids[:, 0].tolist()]

    @torch.no_grad()
    def table(self, weightings: Array) -> Array:
        """Return log-probabilities [W, P, N] of every word at every weighting [W, K]."""
        every, tables = torch.arange(len(self.bed.prompts.ids)), []
        for part in np.array_split(weightings, -(-len(weightings) // 5)):
            coefficients = self.coefficients(np.repeat(part, len(every), axis=0), len(part) * len(every))
            tables.append(self.read(every.repeat(len(part)), coefficients).view(len(part), len(every), -1))
        return exactly(torch.cat(tables))


def exactly(log_probs: Tensor) -> Array:
    """Return float64 log-probabilities that are normalized as such: a float32 sum is off by 1e-7."""
    return functional.log_softmax(log_probs.double(), dim=-1).numpy()


def standardized(rewards: Array, ref_log_probs: Array) -> Array:
    """Return rewards [P, N, K] with mean 0 and standard deviation 1 over the reference policy's answers [P, N]."""
    probs = np.exp(ref_log_probs)[..., None]
    mean = (probs * rewards).sum(1).mean(0)
    std = np.sqrt((probs * (rewards - mean) ** 2).sum(1).mean(0))
    return np.asarray((rewards - mean) / std)


def count_words(texts: Sequence[str]) -> Counter[str]:
    """Count lower-case words."""
    return Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))


def _allowed(
    probable: Tensor, tokenizer: PreTrainedTokenizerBase, counts: Mapping[str, int], words: int
) -> tuple[Tensor, list[str]]:
    """Return ids and texts of the most probable tokens that are a whole word of the corpus, by probability."""
    found: dict[str, int] = {}
    for token in probable.argsort(descending=True).tolist():
        text = str(tokenizer.decode([token]))
        word = text[1:]
        whole = text.startswith(" ") and len(word) > 1 and word.isalpha() and counts.get(word.lower(), 0) > 0
        if whole and probable[token] <= MOST_PROBABLE:
            found.setdefault(word, token)
        if len(found) == words:
            return torch.tensor(list(found.values())), list(found)
    raise UsageError(f"--words: {words}, but the model knows {len(found)} words of the corpus; lower it")


def _of_words(words: Sequence[str], counts: Mapping[str, int], prompts: int) -> list[Array]:
    """Return the rewards [P, N] that do not look at the prompt: few letters, and rarity in the corpus."""
    short = -np.array([len(word) for word in words], dtype=np.float64)
    specific = -np.log([counts[word.lower()] for word in words])
    return [np.tile(each, (prompts, 1)) for each in (short, specific)]
