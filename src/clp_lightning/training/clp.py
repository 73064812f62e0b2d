"""CLP finetuning as a Lightning module; `ClpModule.training_step` is the algorithm.

One trainer serves every method: CLP draws weightings from a Dirichlet distribution, rewarded soups draws one-hot ones.
All randomness of a step derives from (seed, step), so a run that was interrupted equals one that was not.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clp_lightning import weightings as simplex
from clp_lightning.config.methods import Dirichlet, Distribution, Fixed, Listed, MixedVertices, Mixture, Vertices
from clp_lightning.config.training import Training
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.baselines import Group
from clp_lightning.training.losses import balanced_ratios, sequence_kl, token_kl
from clp_lightning.training.method_losses import Batch, ReinforceLoss
from clp_lightning.training.sft import PolicyModule

RewardFunction = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # documents, responses -> normalized [B, K]
ANNEALED_SHARE = 0.7  # of the steps, over which alpha falls from `alpha_start`


def draw_weightings(
    distribution: Distribution, rng: np.random.Generator, count: int, objectives: Sequence[str]
) -> np.ndarray:
    """Draw [count, K] weightings from a method's Q."""
    if isinstance(distribution, Dirichlet | Mixture) and distribution.antithetic:
        plain = distribution.model_copy(update={"antithetic": False})
        drawn = draw_weightings(plain, rng, math.ceil(count / len(objectives)), objectives)
        return simplex.antithetic(rng, count, drawn)
    match distribution:
        case Dirichlet():
            return simplex.dirichlet(rng, count, len(objectives), concentration=distribution.concentration)
        case Mixture():
            return simplex.mixture(
                rng,
                count,
                len(objectives),
                concentration=distribution.concentration,
                corner_mass=distribution.corner_mass,
            )
        case Vertices() | MixedVertices():
            return simplex.vertices(rng, count, len(objectives))
        case Fixed():
            return np.tile(simplex.to_array(distribution.weighting, objectives), (count, 1))
        case Listed():
            rows = simplex.to_rows(distribution.each, len(distribution.each), objectives)
            return simplex.shares(rng, count, rows)


def reward_weights(distribution: Distribution, weightings: np.ndarray) -> np.ndarray:
    """Return what scalarizes the rewards [N, K] of policies at `weightings` [N, K]: these, unless Q mixes its vertices."""
    if not isinstance(distribution, MixedVertices):
        return weightings
    return weightings @ distribution.mixtures(weightings.shape[1])


class Drawn(NamedTuple):
    """What is known of a step's responses, whatever weighting they are learned from at; B rows in G groups."""

    rewards: Tensor  # [B, K]
    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]
    ref_log_probs: Tensor  # [B, T]
    states: Tensor  # [G, H]

    def repeated(self, parts: int) -> "Drawn":
        """Return the batch `parts` times, one after the other."""
        return Drawn(*(each.repeat(parts, 1) for each in self))


class ClpModule(PolicyModule):
    """CLP: one policy for every weighting (arXiv 2407.15762), by REINFORCE with a baseline or another `loss` of a step's batch.

    `rewards(documents, responses)` returns normalized rewards [B, K]. The KL strength is `config.alpha`, or with
    `config.alpha_high` drawn from between them per group; the policy is then conditioned on it.
    """

    def __init__(
        self,
        policy: SteerablePolicy,
        config: Training,
        distribution: Distribution,
        documents: Sequence[str],
        rewards: RewardFunction,
        seed: int,
        *,
        relabel: bool = False,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__(policy, learning_rate=config.learning_rate, steps=config.steps, accumulate=config.accumulate)
        self.config, self.distribution, self.documents = config, distribution, documents
        self.rewards, self.seed, self.relabel, self.generated_tokens = rewards, seed, relabel, 0
        # rotations of a weighting that a prompt's samples are divided among: groups of a prompt
        self.rotations = (
            simplex.rotations_of_samples(len(policy.objectives), config.samples_per_prompt) if relabel else 1
        )
        assert policy.experts is not None
        hidden = policy.model.config.hidden_size
        self.method_loss = loss or ReinforceLoss(config, hidden=hidden, coefficients=policy.experts.count)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One on-policy gradient step; the lines follow the algorithm."""
        started = time.monotonic()

        # x ~ D, (w, alpha) ~ Q: one prompt, one weighting and one KL strength per group
        documents, weightings, alphas, uniform = self._draw(batch_idx)
        samples = len(uniform) // len(documents)
        coefficients = self._coefficients(weightings, alphas)
        prompts = self.policy.tokenize(documents, coefficients)

        # y ~ pi_w(. | x): several samples share the prompt's forward
        responses = self.policy.rollout(prompts, coefficients, samples=samples, uniform=uniform)
        ids, mask = responses.ids, responses.mask

        # R(x, y), and log pi_ref: a row without coefficients is the reference
        rewards = self.rewards([each for each in documents for _ in range(samples)], self.policy.decode(ids))
        parts, samples = self.rotations, self.config.samples_per_prompt
        documents, weightings, alphas = documents[::parts], weightings[::parts], alphas[::parts]  # once per prompt
        with torch.no_grad():
            plain = self.policy.tokenize(documents) if self.policy.prompted or self.relabel else prompts
            reference = self.policy.score_fully(plain, ids, mask, None, samples=samples)
        drawn = Drawn(torch.as_tensor(rewards).to(ids.device), ids, mask, reference.log_probs, reference.states)
        ref_logits = reference.logits if self.config.kl == "exact" else None
        del reference  # its logits, which are large

        # with relabel: all responses to a prompt at every rotation of its weighting
        if self.relabel:
            weightings = np.concatenate(simplex.rotations(weightings)[:parts])
            documents, alphas, drawn = documents * parts, np.tile(alphas, parts), drawn.repeated(parts)
            coefficients = self._coefficients(weightings, alphas)
            prompts = self.policy.tokenize(documents, coefficients)

        # log pi_w, and how likely it is that a response was drawn from pi_w and not at another rotation
        scored = self.policy.score_fully(prompts, drawn.ids, drawn.mask, coefficients, samples=samples)
        log_probs = scored.log_probs
        ratios = balanced_ratios(log_probs.detach(), drawn.mask, parts)

        # the loss: (1 - alpha) w . R - alpha KL against a baseline, or what the method minimizes instead
        scalarizing = reward_weights(self.distribution, weightings)
        w, alpha = (torch.as_tensor(np.repeat(x, samples, axis=0)).to(ids.device) for x in (scalarizing, alphas))
        if self.config.kl == "exact":
            assert scored.logits is not None and ref_logits is not None  # only testbeds have none
            kl = token_kl(scored.logits, ref_logits, drawn.mask).sum(-1)
        else:
            kl = sequence_kl(log_probs.detach(), drawn.ref_log_probs, drawn.mask)
        group = Group(coefficients, drawn.states, ratios.to(w) if self.relabel else None, parts)
        elsewhere = partial(self._score_elsewhere, batch_idx, documents, alphas, drawn)
        loss = self.method_loss(
            Batch(
                rewards=drawn.rewards.to(w),
                weightings=w,
                alphas=alpha,
                log_probs=log_probs,
                ref_log_probs=drawn.ref_log_probs,
                mask=drawn.mask,
                kl=kl,
                group=group,
                ratios=ratios,
                log_probs_elsewhere=elsewhere,
                strategy=self.trainer.strategy,
            )
        )

        self.generated_tokens += int(self.trainer.strategy.reduce(mask.sum().float(), reduce_op="sum"))
        named = {f"reward_{name}": float(rewards[:, k].mean()) for k, name in enumerate(self.policy.objectives)}
        self.record(
            loss=loss.item(),
            scalarized_reward=float((ratios * (w * drawn.rewards).sum(-1)).mean()),
            kl=float((ratios * kl.detach()).mean()),
            length=float(mask.sum(-1).float().mean()),
            **({"reuse": parts / float(ratios.square().mean())} if self.relabel else {}),
            **named,
            seconds=time.monotonic() - started,
        )
        return loss

    def alpha_now(self) -> float:
        """Return this step's KL strength: constant, or annealed from `alpha_start`.

        At a high alpha the optimum is near the reference; following it down keeps every good answer in sight, where a low
        alpha from the start settles on the first one that is found (deterministic annealing, Rose 1998).
        """
        config = self.config
        if config.alpha_start is None:
            return config.alpha
        done = min(1.0, self.global_step / (ANNEALED_SHARE * config.steps))
        return config.alpha_start * (config.alpha / config.alpha_start) ** done

    def _coefficients(self, weightings: np.ndarray, alphas: np.ndarray) -> Any:
        """Return the experts' coefficients of policies at weightings [G, K] and KL strengths [G]."""
        return self.policy.coefficients(weightings, len(weightings), alphas if self.policy.takes_alpha else None)

    def _score_elsewhere(self, batch_idx: int, documents: list[str], alphas: np.ndarray, drawn: Drawn) -> Tensor:
        """Return log-probabilities [B, T] of a step's responses at other weightings, which are drawn from Q like the first."""
        world, rank, groups = self.trainer.world_size, self.trainer.global_rank, len(documents)
        rng = np.random.default_rng([self.seed, self.global_step, batch_idx % self.config.accumulate, 1])
        others = draw_weightings(self.distribution, rng, groups * world, self.policy.objectives)
        coefficients = self._coefficients(others[rank * groups : (rank + 1) * groups], alphas)
        prompts, samples = self.policy.tokenize(documents, coefficients), len(drawn.ids) // groups
        return self.policy.score_fully(prompts, drawn.ids, drawn.mask, coefficients, samples=samples).log_probs

    def _draw(self, batch_idx: int) -> tuple[list[str], np.ndarray, np.ndarray, Tensor]:
        """Return this step's documents [G], weightings [G, K], alphas [G] and random numbers [B, T].

        All of it follows from (seed, step, micro-batch). Several processes draw the whole batch and each takes its part,
        so that they compute what one process with a batch of that size would.
        """
        world, rank = self.trainer.world_size, self.trainer.global_rank
        config = self.config
        share = self.rotations  # groups of a prompt, which divide its samples
        own, samples = config.prompts_per_step * share, config.samples_per_prompt // share  # groups of this process
        rng = np.random.default_rng([self.seed, self.global_step, batch_idx % config.accumulate])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        count = config.prompts_per_step * world
        chosen = np.repeat(rng.choice(len(self.documents), count, replace=len(self.documents) < count), share)
        weightings = draw_weightings(self.distribution, rng, count, self.policy.objectives)
        weightings = simplex.rotations(weightings)[:share].swapaxes(0, 1).reshape(own * world, -1)
        lowest = self.alpha_now()
        high = lowest if config.alpha_high is None else config.alpha_high
        alphas = np.repeat(rng.uniform(lowest, high, count), share)
        rows = own * world * samples
        uniform = torch.rand(rows, self.policy.generation.max_new_tokens, generator=generator, dtype=torch.float64)
        part = slice(rank * own, (rank + 1) * own)
        part_rows = slice(part.start * samples, part.stop * samples)
        documents = [self.documents[row] for row in chosen[part]]
        return documents, weightings[part], alphas[part], uniform[part_rows].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Costs are counted over all sessions of a run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["generated_tokens"] = self.generated_tokens

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the counts."""
        super().on_load_checkpoint(checkpoint)
        self.generated_tokens = checkpoint["generated_tokens"]
