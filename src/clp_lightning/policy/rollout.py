"""Sampling responses and scoring them, with one prompt pass for all samples of a group.

The samples of a group (one prompt, one weighting) share the forward, and in training the backward, of their prompt: it
runs once and its keys and values (an encoder-decoder's encoder states) are expanded to the samples.
Shapes: G groups, S samples each, B = G * S rows in group order, P prompt tokens (left-padded), T response tokens, H hidden.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache

from clp_lightning.policy.head import logits_of

# A context in which the model's rows are steered; the argument [rows] names the group whose coefficients each row has.
Steer = Callable[[Tensor], AbstractContextManager[None]]


class Prompts(NamedTuple):
    """Tokenized prompts, padded on the left."""

    ids: Tensor  # [G, P] int64
    mask: Tensor  # [G, P] bool, True = counts


class Responses(NamedTuple):
    """Sampled responses, padded on the right; the token that ends a response belongs to it."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool, True = counts
    log_probs: Tensor  # [B, T] float32, at sampling time


class Step(NamedTuple):
    """The next token of every row; rows whose response has ended have the padding token and do not count."""

    ids: Tensor  # [B] int64
    mask: Tensor  # [B] bool, True = counts
    log_probs: Tensor  # [B] float32


class Prefix:
    """Prompts that were read once and expanded to B rows; responses are read on top, some tokens at a time."""

    def __init__(self, model: Any, prompts: Prompts, steer: Steer, *, samples: int) -> None:
        self.model, self.steer = model, steer
        groups = torch.arange(len(prompts.ids), device=prompts.ids.device)
        self.rows = groups.repeat_interleave(samples)  # [B], the group of each row
        self.mask = prompts.mask.repeat_interleave(samples, dim=0)
        if model.config.is_encoder_decoder:
            with steer(groups):
                states = model.get_encoder()(input_ids=prompts.ids, attention_mask=prompts.mask.long())[0]
            self.states = states.repeat_interleave(samples, dim=0)
            self.cache: Any = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
            start = torch.full_like(self.rows[:, None], model.config.decoder_start_token_id)
            self.last = self._decode(start)
        else:
            self.cache = DynamicCache(config=model.config)
            with steer(groups):
                last = model.base_model(
                    input_ids=prompts.ids,
                    attention_mask=prompts.mask.long(),
                    position_ids=(prompts.mask.long().cumsum(-1) - 1).clamp(min=0),
                    past_key_values=self.cache,
                    use_cache=True,
                )[0][:, -1:]
            if samples > 1:
                self.cache.batch_repeat_interleave(samples)
            self.last = last.repeat_interleave(samples, dim=0)  # [B, 1, H], what the first token is drawn from
            self.position = self.mask.sum(-1, keepdim=True)

    def extend(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Read tokens `ids` [B, N], of which those in `mask` count; return their hidden states [B, N, H]."""
        if self.model.config.is_encoder_decoder:
            return self._decode(ids)
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = self.position + torch.arange(ids.shape[1], device=ids.device)
        self.position = self.position + ids.shape[1]
        with self.steer(self.rows):
            return self.model.base_model(
                input_ids=ids,
                attention_mask=self.mask.long(),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )[0]

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return next-token logits, float32 [N, V], of hidden states [N, 1, H] that belong to groups `rows` (all B in order)."""
        with self.steer(self.rows if rows is None else rows):
            return logits_of(self.model, hidden)[:, 0]

    def _decode(self, ids: Tensor) -> Tensor:
        # right padding follows a row's last token that counts, so causality alone keeps it out
        with self.steer(self.rows):
            return self.model.get_decoder()(
                input_ids=ids,
                encoder_hidden_states=self.states,
                encoder_attention_mask=self.mask.long(),
                past_key_values=self.cache,
                use_cache=True,
            )[0]


@torch.no_grad()
def sampling_steps(
    model: Any,
    steer: Steer,
    prompts: Prompts,
    uniform: Tensor,
    *,
    samples: int,
    end_ids: Collection[int],
    pad_id: int,
    temperature: float,
    top_p: float = 1.0,
    shares: Tensor | None = None,
) -> Iterator[Step]:
    """Sample S responses per prompt of at most T tokens from the random numbers `uniform` [B, T], a token at a time.

    A response ends with any of `end_ids`; without any, all have T tokens. Temperature 0 is greedy, `top_p` is `nucleus`. With
    `shares` [M, G] the next token is drawn from the normalized product of M policies, each to the power of its share; see
    `repeated` for what `prompts` and `steer` then are.

    Two policies that sample with the same numbers are paired: where their distributions agree, so do their tokens.
    Log-probabilities are those of the policy itself (temperature 1, all tokens), whatever the sampling.
    """
    prefix = Prefix(model, prompts, steer, samples=samples)
    hidden, tokens, members = prefix.last, uniform.shape[1], 1 if shares is None else len(shares)
    alive = torch.ones(len(uniform), dtype=torch.bool, device=hidden.device)
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=hidden.device)
    for step in range(tokens):
        scores = _mixed(prefix.logits(hidden), shares, samples)
        token = scores.argmax(-1) if temperature == 0 else _sampled(scores, uniform[:, step, None], temperature, top_p)
        token, mask = token.where(alive, torch.full_like(token, pad_id)), alive
        alive = alive & (token[:, None] != ends).all(-1)
        yield Step(token, mask, scores.gather(-1, token[:, None]).squeeze(-1) * mask)
        if step == tokens - 1 or not alive.any():
            break
        hidden = prefix.extend(token.repeat(members)[:, None], mask.repeat(members)[:, None])


def stacked(steps: Iterator[Step]) -> Responses:
    """Take all steps and return the responses that they make."""
    return Responses(*(torch.stack(column, 1) for column in zip(*steps, strict=True)))


def repeated(prompts: Prompts, members: int) -> Prompts:
    """Repeat the G prompts for M policies that are mixed: group `m * G + g` is prompt g, to be steered as policy m."""
    return Prompts(prompts.ids.repeat(members, 1), prompts.mask.repeat(members, 1))


class Scores(NamedTuple):
    """What a policy says about given responses, differentiable; B rows of T tokens, G prompts."""

    log_probs: Tensor  # float32 [B, T], of the tokens; 0 where there is none
    states: Tensor  # [G, H], the prompts' last hidden states, without a gradient
    logits: Tensor | None  # [N, V], of the N positions that count in the mask's order; None where they are not known


def score_responses(
    model: Any,
    steer: Steer,
    prompts: Prompts,
    ids: Tensor,
    mask: Tensor,
    *,
    samples: int,
    shares: Tensor | None = None,
) -> Scores:
    """Return what the model says about responses, log pi(y_t | x, y_<t) first of all.

    The output layer, a fifth of a small model's work, sees the positions that count and no padding. `shares` mixes M
    policies as in `sampling_steps`.
    """
    prefix, members = Prefix(model, prompts, steer, samples=samples), 1 if shares is None else len(shares)
    every_ids, every_mask = ids.repeat(members, 1), mask.repeat(members, 1)
    hidden = prefix.last
    if ids.shape[1] > 1:
        hidden = torch.cat([hidden, prefix.extend(every_ids[:, :-1], every_mask[:, :-1])], dim=1)
    logits = prefix.logits(hidden[every_mask][:, None], prefix.rows[:, None].expand_as(every_mask)[every_mask])
    if shares is not None:
        logits = _mixed(logits, shares, samples, mask)
    log_probs = logits.new_zeros(ids.shape)
    log_probs[mask] = -functional.cross_entropy(logits, ids[mask], reduction="none")
    return Scores(log_probs, prefix.last[::samples, 0].detach(), logits)


def _mixed(logits: Tensor, shares: Tensor | None, samples: int, mask: Tensor | None = None) -> Tensor:
    """Return log-probabilities [N, V] of logits [N, V], or of the mixture by `shares` [M, G] of logits [M * N, V].

    The N rows are the B rows in order, or the positions of theirs that `mask` [B, T] holds.
    """
    if shares is None:
        return functional.log_softmax(logits, dim=-1)
    each = functional.log_softmax(logits, dim=-1).unflatten(0, (len(shares), -1))  # [M, N, V]
    of_rows = shares.repeat_interleave(samples, dim=1)  # [M, B]
    if mask is not None:
        of_rows = of_rows[:, :, None].expand(-1, *mask.shape)[:, mask]
    # a share of 0 leaves a policy out, also where it forbids a token: 0 * -inf would be NaN
    weighted = torch.where(of_rows[..., None] == 0, 0.0, each * of_rows[..., None].to(each.dtype))
    return functional.log_softmax(weighted.sum(0), dim=-1)


def _sampled(scores: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    scores = scores / temperature
    return draw(scores if top_p >= 1 else nucleus(scores, torch.full_like(uniform, top_p)), uniform)


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """Return unnormalized log-probabilities [B, V] with -inf outside the nucleus (Holtzman et al., 2020, top-p sampling).

    That is the fewest tokens, the most probable first, of probability `top_p` (float64 [B, 1], 0..1) together; one at least.
    Rows with 1 stay as they are.
    """
    ordered, tokens = scores.sort(-1)  # in the direction of transformers' TopPLogitsWarper, so that sums round alike
    outside = ordered.softmax(-1).cumsum(-1) <= (1 - top_p).to(scores.dtype)
    outside[:, -1] = False
    outside = torch.empty_like(outside).scatter(-1, tokens, outside)
    return scores.masked_fill(outside & (top_p < 1), -torch.inf)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token per row from unnormalized log-probabilities [B, V] by inverting the distribution function at `uniform` [B, 1].

    `torch.multinomial` draws a number per token of the vocabulary instead of one, a tenth of a CPU rollout's time.
    """
    distribution = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(distribution, uniform * distribution[:, -1:], right=True).squeeze(-1)
    return token.clamp(max=scores.shape[-1] - 1)  # rounding could reach the end
