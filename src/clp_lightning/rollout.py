"""Sampling responses and scoring them, with one prompt pass for all samples of a group.

The samples of a group (one prompt, one weighting) share the forward, and in training the backward, of their prompt: it
runs once and its keys and values are expanded to the samples.
Shapes: G groups, S samples each, B = G * S rows in group order, P prompt tokens (left-padded), T response tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel


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
    """Run the prompts once; return next-token logits [B, V] and the cache expanded to B rows."""
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=prompts.ids,
        attention_mask=prompts.mask.long(),
        position_ids=_positions(prompts.mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if samples > 1:
        cache.batch_repeat_interleave(samples)
    return output.logits[:, -1].repeat_interleave(samples, dim=0), cache


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    experts_steer,
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

    `experts_steer(repeats)` is a context that steers G * repeats rows. Log-probabilities are those of the policy itself
    (temperature 1), whatever the sampling temperature.
    """
    with experts_steer(1):
        logits, cache = prefill(model, prompts, samples)
    mask = prompts.mask.repeat_interleave(samples, dim=0)
    position = mask.sum(-1, keepdim=True)
    alive = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    ids, masks, log_probs = [], [], []
    with experts_steer(samples):
        for step in range(max_new_tokens):
            scores = functional.log_softmax(logits.float(), dim=-1)
            if temperature == 0:
                token = scores.argmax(-1)
            else:
                probabilities = scores.exp() if temperature == 1 else (scores / temperature).softmax(-1)
                token = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
            token = token.where(alive, torch.full_like(token, pad_id))
            ids.append(token)
            masks.append(alive)
            log_probs.append(scores.gather(-1, token[:, None]).squeeze(-1) * alive)
            alive = alive & (token != end_id)
            if step == max_new_tokens - 1 or not alive.any():
                break
            mask = torch.cat([mask, masks[-1][:, None]], dim=1)
            output = model(
                input_ids=token[:, None],
                attention_mask=mask.long(),
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            logits, position = output.logits[:, -1], position + 1
    return Responses(torch.stack(ids, 1), torch.stack(masks, 1), torch.stack(log_probs, 1))


def response_log_probs(
    model: PreTrainedModel, experts_steer, prompts: Prompts, ids: Tensor, mask: Tensor, *, samples: int
) -> Tensor:
    """Return log pi(y_t | x, y_<t) of given responses, float32 [B, T], 0 where `mask` is False; differentiable."""
    with experts_steer(1):
        first, cache = prefill(model, prompts, samples)
    prompt_mask = prompts.mask.repeat_interleave(samples, dim=0)
    logits = first[:, None]
    if ids.shape[1] > 1:
        positions = prompt_mask.sum(-1, keepdim=True) + torch.arange(ids.shape[1] - 1, device=ids.device)
        with experts_steer(samples):
            rest = model(
                input_ids=ids[:, :-1],
                attention_mask=torch.cat([prompt_mask, mask[:, :-1]], dim=1).long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits
        logits = torch.cat([logits, rest], dim=1)
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return -losses * mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
