"""Sampling responses and scoring them, with one prompt pass for all samples of a group.

The samples of a group (one prompt, one weighting) share the forward, and in training the backward, of their prompt: it
runs once and its keys and values are expanded to the samples.
Shapes: G groups, S samples each, B = G * S rows in group order, P prompt tokens (left-padded), T response tokens.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

# A context in which the model's rows are steered; the argument [rows] names the group whose coefficients each row has.
Steer = Callable[[Tensor], AbstractContextManager[None]]


class Prompts(NamedTuple):
    """Tokenized prompts, padded on the left."""

    ids: Tensor  # [G, P] int64
    mask: Tensor  # [G, P] bool, True = counts


class Responses(NamedTuple):
    """Sampled responses, padded on the right; the end-of-text token belongs to the response."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, True = counts
    log_probs: Tensor  # [B, T] float32, at sampling time


def prefill(model: PreTrainedModel, prompts: Prompts, samples: int) -> tuple[Tensor, DynamicCache]:
    """Run the prompts once; return the last hidden state of each, [B, 1, H], and the cache expanded to B rows."""
    cache = DynamicCache(config=model.config)
    output = model.base_model(
        input_ids=prompts.ids,
        attention_mask=prompts.mask.long(),
        position_ids=_positions(prompts.mask),
        past_key_values=cache,
        use_cache=True,
    )
    if samples > 1:
        cache.batch_repeat_interleave(samples)
    return output.last_hidden_state[:, -1:].repeat_interleave(samples, dim=0), cache


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    steer: Steer,
    prompts: Prompts,
    *,
    samples: int,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Responses:
    """Sample S responses per prompt token by token; temperature 0 is greedy.

    Log-probabilities are those of the policy itself (temperature 1), whatever the sampling temperature. All random
    numbers are drawn first, one per row and token: two policies that start from the same generator state sample with the
    same numbers, which makes comparisons between them paired.
    """
    head, groups = model.get_output_embeddings(), torch.arange(len(prompts.ids), device=prompts.ids.device)
    with steer(groups):
        hidden, cache = prefill(model, prompts, samples)
    mask = prompts.mask.repeat_interleave(samples, dim=0)
    uniform = torch.rand(max_new_tokens, len(mask), 1, generator=generator, device=mask.device, dtype=torch.float64)
    position = mask.sum(-1, keepdim=True)
    alive = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    ids, masks, log_probs = [], [], []
    with steer(groups.repeat_interleave(samples)):
        for step in range(max_new_tokens):
            scores = functional.log_softmax(head(hidden)[:, -1].float(), dim=-1)
            token = scores.argmax(-1) if temperature == 0 else _draw(scores / temperature, uniform[step])
            token = token.where(alive, torch.full_like(token, pad_id))
            ids.append(token)
            masks.append(alive)
            log_probs.append(scores.gather(-1, token[:, None]).squeeze(-1) * alive)
            alive = alive & (token != end_id)
            if step == max_new_tokens - 1 or not alive.any():
                break
            mask = torch.cat([mask, masks[-1][:, None]], dim=1)
            hidden = model.base_model(
                input_ids=token[:, None],
                attention_mask=mask.long(),
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            position = position + 1
    return Responses(torch.stack(ids, 1), torch.stack(masks, 1), torch.stack(log_probs, 1))


def response_log_probs(
    model: PreTrainedModel, steer: Steer, prompts: Prompts, ids: Tensor, mask: Tensor, *, samples: int
) -> Tensor:
    """Return log pi(y_t | x, y_<t) of given responses, float32 [B, T], 0 where `mask` is False; differentiable.

    The output layer, a fifth of a small model's work, sees the positions that count and no padding.
    """
    groups = torch.arange(len(prompts.ids), device=ids.device)
    with steer(groups):
        hidden, cache = prefill(model, prompts, samples)
    rows = groups.repeat_interleave(samples)
    if ids.shape[1] > 1:
        prompt_mask = prompts.mask.repeat_interleave(samples, dim=0)
        positions = prompt_mask.sum(-1, keepdim=True) + torch.arange(ids.shape[1] - 1, device=ids.device)
        with steer(rows):
            rest = model.base_model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([prompt_mask, mask[:, :-1]], dim=1).long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        hidden = torch.cat([hidden, rest], dim=1)
    with steer(rows[:, None].expand_as(mask)[mask]):  # every position as a row of its own
        logits = model.get_output_embeddings()(hidden[mask][:, None])[:, 0]
    log_probs = torch.zeros(ids.shape, device=ids.device)
    log_probs[mask] = -functional.cross_entropy(logits.float(), ids[mask], reduction="none")
    return log_probs


def _draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token per row from unnormalized log-probabilities [B, V] by inverting the distribution function at `uniform` [B, 1].

    `torch.multinomial` draws a number per token of the vocabulary instead of one, a tenth of a CPU rollout's time.
    """
    distribution = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    token = torch.searchsorted(distribution, uniform * distribution[:, -1:], right=True).squeeze(-1)
    return token.clamp(max=scores.shape[-1] - 1)  # rounding could reach the end


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
