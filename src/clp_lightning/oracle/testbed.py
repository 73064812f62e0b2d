"""The methods on the enumerable testbed, trained by the project's own trainer and read out exactly."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clp_lightning.config.methods import Backbones, Dirichlet, Method, SmoothedVertices, Vertices
from clp_lightning.config.parameters import Generation
from clp_lightning.config.training import MiEpo, OnlineDpo, OwnTraining, Training
from clp_lightning.oracle.exact import Array, Problem
from clp_lightning.policy.rollout import Prefix, Prompts, Responses, Scores, draw
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts
from clp_lightning.steering.mixing import bone_soups
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.method_losses import build_loss
from clp_lightning.training.trainer import fit

LETTERS = "abcdefgh"  # the tokens of a response, and the prompts
LENGTH = 3
RESPONSES = len(LETTERS) ** LENGTH
TEXTS = [" ".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]  # every response, in order
NUMBER = {text: number for number, text in enumerate(TEXTS)}
PLACES = torch.tensor([len(LETTERS) ** place for place in reversed(range(LENGTH))])
BEGUN = torch.cartesian_prod(*[torch.arange(len(LETTERS))] * (LENGTH - 1))  # all that a response can begin with
NAMES = "uvwxyz"  # objectives: one word each where a weighting is written into the prompt
HIDDEN = 64
RANK = 2 * HIDDEN  # of what is low-rank by definition: each term of `bilinear` can then be all of a layer

DIRICHLET = Dirichlet(kind="dirichlet", concentration=1.0)
SMOOTHED = SmoothedVertices(kind="smoothed_vertices", concentration=1.0)
BACKBONES = Backbones(kind="backbones", beta=0.7)
FULL = Method(conditioning="full", shared=False, prompted=False, weightings=DIRICHLET)
METHODS = {
    "clp-full": FULL,
    "clp-attn": Method(conditioning="attention", shared=True, prompted=False, weightings=DIRICHLET),
    "clp-logit": Method(conditioning="logits", shared=True, prompted=False, weightings=DIRICHLET),
    "clp-prompt": Method(conditioning="none", shared=True, prompted=True, weightings=DIRICHLET),
    "rewarded-soups": Method(conditioning="full", shared=False, prompted=False, weightings=Vertices(kind="vertices")),
    "smoothed-soups": Method(conditioning="full", shared=False, prompted=False, weightings=SMOOTHED),
    "bone-soups": Method(conditioning="full", shared=False, prompted=False, weightings=BACKBONES),
    "bilinear": Method(
        conditioning="full", parameterization="bilinear", shared=False, prompted=False, weightings=DIRICHLET
    ),
    "singular": Method(
        conditioning="full", parameterization="singular", shared=False, prompted=False, weightings=DIRICHLET
    ),
    "mo-odpo": FULL.model_copy(update={"loss": OnlineDpo(kind="online_dpo")}),
    "mi-epo": FULL.model_copy(update={"loss": MiEpo(kind="mi_epo")}),
    "gdpo": FULL.model_copy(update={"training": OwnTraining(advantages="gdpo")}),
}
# The order in which they start: two processes then end at about the same time. The first five run unless others are named.
QUEUE = (
    "clp-prompt", "rewarded-soups", "clp-attn", "clp-full", "clp-logit",
    "smoothed-soups", "bone-soups", "bilinear", "singular", "mo-odpo", "mi-epo", "gdpo",
)  # fmt: skip
DEFAULT = QUEUE[:5]


def training(alpha: float, steps: int) -> Training:
    """Return the budget and the objective, the same for every method; alpha is annealed from 0.5 (docs/log.md says why)."""
    return Training(
        seed=0, steps=steps, accumulate=1, devices=1, prompts_per_step=16, samples_per_prompt=1024, learning_rate=3e-3,
        rank="full", alpha=alpha, alpha_start=0.5 if alpha < 0.5 else None, alpha_high=None, kl="reward",
        baseline="leave_one_out", advantages="batch", gradient_clip=1.0, checkpoint_every=10**6,
    )  # fmt: skip


class Testbed:
    """A random tiny causal LM as reference policy, and conflicting random reward tables over all of its responses."""

    def __init__(self, objectives: int, seed: int) -> None:
        self.objectives = tuple(NAMES[:objectives])
        self.seed = seed
        rng = np.random.default_rng(seed)
        tables = rng.standard_normal((len(LETTERS), RESPONSES, objectives))
        tables -= 0.5 * tables.mean(-1, keepdims=True)  # what is good for one is bad for the others
        self.tokenizer = _tokenizer()
        plain = SteerablePolicy(self.model(), self.tokenizer, GENERATION, objectives=self.objectives)
        with torch.no_grad():
            self.ref_token_log_probs = read_tokens(plain, plain.tokenize(list(LETTERS)), None)  # [P, N, T]
        self.ref_log_probs = self.ref_token_log_probs.double().sum(-1).numpy()
        probs = np.exp(self.ref_log_probs)[..., None]
        mean = (probs * tables).sum(1).mean(0)
        std = np.sqrt((probs * (tables - mean) ** 2).sum(1).mean(0))
        self.rewards = (tables - mean) / std  # standardized on the reference policy, as everywhere in this project

    def model(self) -> Any:
        """Return the reference policy; the same at every call."""
        torch.manual_seed(self.seed)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer), hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.12,
            eos_token_id=self.tokenizer.eos_token_id,  # Llama's own is a letter here
            attn_implementation="eager",  # type: ignore[call-arg]  # the faster one for heads of 16 and three tokens
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        model.lm_head = nn.Linear(HIDDEN, len(LETTERS), bias=False)  # responses are made of letters only
        return model.eval()

    def reward(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Look rewards [B, K] up in the tables."""
        prompts = [LETTERS.index(document) for document in documents]
        return self.rewards[prompts, [NUMBER[response] for response in responses]]

    def problem(self, alpha: float) -> Problem:
        """Return what is known about the testbed at a KL strength."""
        return Problem(self.ref_log_probs, self.rewards, alpha)

    def train(self, method: Method, training: Training, **options: Any) -> SteerablePolicy:
        """Train one method with the trainer of the pipeline."""
        experts = Experts(
            model := self.model(), conditioning=method.conditioning, experts=len(self.objectives),
            rank=RANK if method.parameterization else training.rank,
            shared=method.shared, parameterization=method.parameterization or "experts", seed=self.seed,
        )  # fmt: skip
        policy = TabledPolicy(
            model, self.tokenizer, GENERATION, objectives=self.objectives, experts=experts, prompted=method.prompted
        )
        policy.table = self.ref_token_log_probs
        module = ClpModule(
            policy, method.training.instead_of(training), method.weightings, list(LETTERS), self.reward, self.seed,
            relabel=method.relabel, loss=build_loss(method.loss, Path(".")),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            fit(module, checkpoints=Path(folder), every=training.checkpoint_every,
                gradient_clip=training.gradient_clip, **options)  # fmt: skip
        return policy


GENERATION = Generation(max_prompt_tokens=1, max_new_tokens=LENGTH, template="{document}", chat=False, end_token=None)


class TabledPolicy(SteerablePolicy):
    """A policy whose responses can all be enumerated, so that a step costs the same however many it samples.

    One pass over everything that a response can begin with gives the distribution that responses are drawn from, and the
    log-probabilities that are learned from. Texts and the reference policy's log-probabilities are looked up.
    """

    table: Tensor  # float32 [P, N, T], the reference policy's
    own: tuple[Tensor, Tensor]  # the coefficients [G, K] of the last rollout, and the policy's table at them [G, N, T]

    @torch.enable_grad()
    def rollout(self, prompts: Prompts, coefficients: Tensor | None, *, samples: int, **options: Any) -> Responses:
        """As in `SteerablePolicy`, but a group's whole responses are drawn at once, by systematic sampling (Madow 1949).

        One random number moves S evenly spaced points through the distribution, so that a response with probability p is
        drawn `S p` times, rounded up or down. Each is an exact draw, and the gradient has little noise left.
        """
        assert coefficients is not None
        self.own = coefficients, read_tokens(self, prompts, coefficients)
        table = self.own[1].detach()
        first = options["uniform"][::samples, :1]  # [G, 1]
        chosen = draw(table.sum(-1), (torch.arange(samples) + first) / samples)  # [G, S]
        ids = (chosen.flatten()[:, None] // PLACES) % len(LETTERS)
        log_probs = table.take_along_dim(chosen[..., None], 1).flatten(0, 1)
        return Responses(ids, torch.ones_like(ids, dtype=torch.bool), log_probs)

    def score_fully(
        self, prompts: Prompts, ids: Tensor, mask: Tensor, coefficients: Tensor | None, *, samples: int = 1
    ) -> Scores:
        """As in `SteerablePolicy`, of the responses of the last rollout, without logits; states are 0."""
        if coefficients is None:
            table = self.table[prompts.ids[:, -1]]
        else:
            own, table = self.own
            table = table if coefficients is own else read_tokens(self, prompts, coefficients)
        chosen = (ids * PLACES).sum(-1).view(-1, samples, 1)
        return Scores(table.take_along_dim(chosen, 1).flatten(0, 1), torch.zeros(len(prompts.ids), HIDDEN), None)

    def decode(self, ids: Tensor) -> list[str]:
        """As in `SteerablePolicy`, of responses that are all complete."""
        return [TEXTS[number] for number in (ids * PLACES).sum(-1).tolist()]


def readings(name: str, weightings: Array) -> dict[str, Array]:
    """Return a method's rows by name, and the experts' coefficients [W, K] of each at weightings [W, K].

    Bone soups have two: the coefficients that add the backbones' mixtures up to w, not extrapolated, and w itself.
    """
    if name != "bone-soups":
        return {name: weightings}
    solve = bone_soups(BACKBONES.mixtures(weightings.shape[1]), extrapolation=0.0)
    return {name: solve(torch.as_tensor(weightings))[0][0].numpy(), f"{name}, averaged with w": weightings}


@torch.no_grad()
def read_out(policy: SteerablePolicy, weightings: Array) -> Array:
    """Return log-probabilities [W, P, N] of every response at every weighting [W, K]."""
    tables = []
    for weighting in weightings:
        coefficients = policy.coefficients(np.tile(weighting, (len(LETTERS), 1)), len(LETTERS))
        tables.append(read_tokens(policy, policy.tokenize(list(LETTERS), coefficients), coefficients))
    return np.stack([table.double().sum(-1).numpy() for table in tables])


def read_tokens(policy: SteerablePolicy, prompts: Prompts, coefficients: Tensor | None) -> Tensor:
    """Return log-probabilities [G, N, T] of every token of every response to G prompts, at coefficients [G, K] or the reference.

    Responses that begin alike share their beginning: it is read once, and its next letters are all looked up.
    """
    count, groups = len(LETTERS), len(prompts.ids)
    starts, begun = len(BEGUN), BEGUN.repeat(groups, 1)  # [G * starts, T - 1]
    prefix = Prefix(policy.model, prompts, policy.steer(coefficients), samples=starts)
    hidden = torch.cat([prefix.last, prefix.extend(begun, torch.ones_like(begun, dtype=torch.bool))], dim=1)
    logits = prefix.logits(hidden.flatten(0, 1)[:, None], prefix.rows.repeat_interleave(LENGTH))
    nexts = logits.log_softmax(-1).view(groups, starts, LENGTH, count)
    begun = begun.view(groups, starts, LENGTH - 1, 1)
    taken = nexts[:, :, :-1].gather(-1, begun)[..., 0]  # [G, starts, T - 1]
    last = nexts[:, :, -1, :, None]  # [G, starts, letter, 1]
    return torch.cat([taken[:, :, None].expand(-1, -1, count, -1), last], dim=-1).flatten(1, 2)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, name and digit; the response letters come first, as in the output layer."""
    words = [*LETTERS, "<pad>", "<end>", *NAMES, *"0123456789", ".", ",", "\n"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
