"""The methods, and three ways to get their gradient: from samples, from all words of a step's prompts, from everything."""

import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from bench.one_token.bed import OBJECTIVES, Bed, OneTokenPolicy
from clp_lightning import weightings as simplex
from clp_lightning.config.methods import Dirichlet, Distribution, Method, OwnTraining, SmoothedVertices, Vertices
from clp_lightning.config.parameters import Training
from clp_lightning.oracle.exact import Array, Problem, regularized_rewards
from clp_lightning.training.clp import ClpModule, reward_weights
from clp_lightning.training.trainer import fit

CONCENTRATION = 0.4
GRID = simplex.lattice(len(OBJECTIVES), 5)
SIX_SAMPLES = OwnTraining(prompts_per_step=4, samples_per_prompt=6)  # two of each rotation; as many rollouts as 6 x 4
_CLP = Method(
    conditioning="full", shared=False, prompted=False,
    weightings=Dirichlet(kind="dirichlet", concentration=CONCENTRATION),
)  # fmt: skip
METHODS = {
    "clp-full": _CLP,
    "clp-full, relabel": _CLP.model_copy(update={"relabel": True, "training": SIX_SAMPLES}),
    "soups": _CLP.model_copy(update={"weightings": Vertices(kind="vertices")}),
    "smoothed soups": _CLP.model_copy(
        update={"weightings": SmoothedVertices(kind="smoothed_vertices", concentration=CONCENTRATION)}
    ),
}
SAMPLED, ENUMERATED, EXACT = "sampled", "enumerated", "exact"


class Values(NamedTuple):
    """What a trained policy is worth, exactly."""

    j: list[float]  # (1 - alpha) w.R - alpha KL at the weightings of `GRID`
    kl: float  # nats, mean over them
    entropy: float  # nats, mean over them and prompts; where it is near 0 the samples of a group are all one word
    seconds: float

    @property
    def mean_j(self) -> float:
        """Mean over the grid."""
        return float(np.mean(self.j))

    @property
    def corners(self) -> list[float]:
        """J where one objective alone counts, in the objectives' order."""
        return [self.j[int(np.argmax(GRID @ one))] for one in np.eye(len(OBJECTIVES))]


class EnumeratedModule(ClpModule):
    """Prompts and weightings are drawn as in CLP, then every word is learned from with its probability."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the negative objective of the step's prompts."""
        documents, weightings, _, _ = self._draw(batch_idx)
        prompts = torch.tensor([int(each) for each in documents])
        return self.loss(prompts, weightings, np.full(len(prompts), 1 / len(prompts)))

    def loss(self, prompts: Tensor, weightings: np.ndarray, shares: np.ndarray) -> Tensor:
        """Return `-sum_g shares_g J(prompt_g, w_g)` of prompts [G] at [G, K], scaled as `training.advantages` says."""
        policy: Any = self.policy
        started, alpha, bed = time.monotonic(), self.config.alpha, policy.bed
        log_probs = policy.read(prompts, self._coefficients(weightings, np.zeros(len(weightings))))
        w = torch.as_tensor(reward_weights(self.distribution, weightings))
        rewards = (torch.as_tensor(bed.rewards)[prompts] * w[:, None]).sum(-1)
        returns = (1 - alpha) * rewards - alpha * (log_probs - bed.ref_log_probs[prompts])
        share, probs = torch.as_tensor(shares), log_probs.exp()
        value = (share * (probs * returns).sum(-1)).sum()
        centered = (returns - (probs * returns).sum(-1, keepdim=True)).detach()
        square = (share * (probs.detach() * centered.square()).sum(-1)).sum()
        scale = square.sqrt() if self.config.advantages == "batch" else 1.0
        self.record(loss=-value.item(), seconds=time.monotonic() - started)
        return -value / scale


class ExactModule(EnumeratedModule):
    """Every step learns from all prompts at all weightings of a fixed grid: gradients have no variance at all."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the negative objective."""
        policy: Any = self.policy
        count = len(policy.bed.prompts.ids)
        weightings, shares = quadrature(self.distribution)
        prompts = torch.arange(count).repeat(len(weightings))
        return self.loss(prompts, np.repeat(weightings, count, axis=0), np.repeat(shares / count, count))


MODULES = {SAMPLED: ClpModule, ENUMERATED: EnumeratedModule, EXACT: ExactModule}


def quadrature(distribution: Distribution) -> tuple[Array, Array]:
    """Return weightings [W, K] and their shares [W] that stand for Q: its vertices, or of a Dirichlet distribution ten means."""
    count = len(OBJECTIVES)
    if isinstance(distribution, Dirichlet):
        return _means(distribution.concentration)
    return np.eye(count), np.full(count, 1 / count)


@functools.cache
def _means(concentration: float) -> tuple[Array, Array]:
    """Return the mean of the draws that are nearest to each point of a lattice, [W, K], and their shares [W].

    Of Dirichlet(0.4) over three objectives the second moments are met to 5 % (a test).
    """
    count = len(OBJECTIVES)
    lattice = simplex.lattice(count, 4)
    drawn = simplex.dirichlet(np.random.default_rng(0), 100_000, count, concentration=concentration)
    turned = simplex.rotations(drawn).reshape(-1, count)  # so that no objective has more than its share
    cell = np.eye(len(lattice))[((turned[:, None] - lattice) ** 2).sum(-1).argmin(1)]
    shares = cell.mean(0)
    return (cell.T @ turned) / len(turned) / shares[:, None], shares


def module(policy: OneTokenPolicy, method: Method, training: Training, gradients: str) -> ClpModule:
    """Return the trainer of a policy."""
    documents = [str(number) for number in range(len(policy.bed.prompts.ids))]
    training = method.training.instead_of(training)
    return MODULES[gradients](
        policy, training, method.weightings, documents, policy.bed.reward, training.seed, relabel=method.relabel
    )


def run(trainer: ClpModule, callbacks: Sequence[Callback] = ()) -> None:
    """Train with the project's own loop."""
    clip = trainer.config.gradient_clip
    with tempfile.TemporaryDirectory() as folder:
        fit(
            trainer, checkpoints=Path(folder), every=10**6, gradient_clip=clip, callbacks=callbacks, show_progress=False
        )


def evaluate(bed: Bed, log_probs: Array, alpha: float, seconds: float = 0.0) -> Values:
    """Return the exact values of policies [W, P, N] at the weightings of `GRID`."""
    problem = bed.problem(alpha)
    j = (regularized_rewards(problem, log_probs) * GRID).sum(-1)
    entropy = -(np.exp(log_probs) * log_probs).sum(-1).mean()
    return Values(j.tolist(), float(kl(problem, log_probs).mean()), float(entropy), seconds)


def kl(problem: Problem, log_probs: Array) -> Array:
    """Return the KL [W] to the reference policy in nats, averaged over prompts."""
    nothing = Problem(problem.ref_log_probs, np.zeros_like(problem.rewards), 1.0)
    return -regularized_rewards(nothing, log_probs)[:, 0]


def train(bed: Bed, method: Method, training: Training, gradients: str) -> Values:
    """Train one method and evaluate it exactly; seconds are those of the training."""
    with bed.policy(
        conditioning=method.conditioning, shared=method.shared, rank=training.rank, seed=training.seed
    ) as policy:
        started = time.monotonic()
        run(module(policy, method, training, gradients))
        return evaluate(bed, policy.table(GRID), training.alpha, time.monotonic() - started)
