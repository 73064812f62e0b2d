"""What is measured: the default run's base model (or a tiny random one), steerable policies and their trainer."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from transformers import AutoTokenizer

from bench.steering.turns import StepTurns
from clp_lightning.config.methods import Dirichlet
from clp_lightning.config.parameters import Generation, RandomModel, Training, load_config
from clp_lightning.policy.base import write_pretrained, write_random
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.rollout import Prompts, Responses, Steer, sampling_steps, stacked
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.trainer import fit

GENERATION = Generation(max_prompt_tokens=48, max_new_tokens=16, template="{document}", chat=False, end_token=None)
RANK, GROUPS, SAMPLES = 8, 4, 4
WORDS = "create bucket specifies the name of a resource that holds objects and its region with tags".split()


class Subject(NamedTuple):
    """A folder with the base model, and documents that fill the prompt."""

    folder: Path
    documents: list[str]


def subject(tiny: bool) -> Subject:
    """Write the base model once into build/bench and return it."""
    folder = Path("build/bench") / ("tiny" if tiny else "base")
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, 60)) for _ in range(48)]
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        base = load_config("params.yaml").base
        if tiny or base.kind == "random":
            size = RandomModel(kind="random", vocabulary=300, hidden=64, layers=2, heads=4)
            write_random(size, documents, 0, folder)
        else:
            write_pretrained(base, folder)
    return Subject(folder, documents)


def tokenizer(subject: Subject) -> Any:
    """Return the tokenizer with an end token that no model here writes: every response then has the same length."""
    loaded = AutoTokenizer.from_pretrained(subject.folder, padding_side="left")
    unused = [token for token in loaded.all_special_tokens if token not in (loaded.eos_token, loaded.pad_token)]
    if unused:
        loaded.pad_token, loaded.eos_token = loaded.eos_token, unused[-1]
    return loaded


def steerable(subject: Subject, objectives: int = 2, *, plain: bool = False) -> SteerablePolicy:
    """Load a policy with experts that matter (fresh ones add 0), or the plain base model without any."""
    model, _ = load_base(subject.folder)
    reader = tokenizer(subject)
    model.generation_config.eos_token_id = reader.eos_token_id  # the model's own would end a response too
    names = [f"length{number}" for number in range(objectives)]
    experts = None
    if not plain:
        experts = Experts(model, conditioning="full", experts=objectives, rank=RANK)
        generator = torch.Generator().manual_seed(0)
        for layer in experts.layers.values():
            layer.own()[-1].data.normal_(std=0.002, generator=generator)
    return SteerablePolicy(model, reader, GENERATION, objectives=names, experts=experts)


def different_weightings(rows: int, objectives: int = 2) -> np.ndarray:
    """Return a weighting for each row, all different, [rows, K]."""
    return np.random.default_rng(0).dirichlet(np.ones(objectives), rows)


def sample(policy: SteerablePolicy, prompts: Prompts, weightings: np.ndarray | None) -> Responses:
    """Generate T tokens on every row; no row ends early."""
    coefficients = policy.coefficients(weightings, len(prompts.ids))
    uniform = torch.rand(len(prompts.ids), GENERATION.max_new_tokens, dtype=torch.float64)
    steer: Steer = policy.steer(coefficients)
    with contextlib.nullcontext() if policy.experts is None else policy.experts.frozen():
        return stacked(
            sampling_steps(policy.model, steer, prompts, uniform, samples=1, end_ids=(), pad_id=0, temperature=1.0)
        )


def word_count(documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """The rule that both trainers optimize: minus the number of words."""
    return -np.array([len(response.split()) for response in responses], dtype=np.float64)


class Gate(Callback):
    """Makes a Lightning trainer wait for its turn."""

    def __init__(self, turns: StepTurns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_train_batch_start(self, *_: Any) -> None:
        """Wait."""
        self.turns.begin(self.name)

    def on_train_batch_end(self, *_: Any) -> None:
        """Pass the turn on."""
        self.turns.end(self.name)


def prepare(subject: Subject, objectives: int, steps: int, gates: list[Callback]) -> Callable[[], None]:
    """Load a policy and return what trains it: loading in threads is not safe, training is."""
    training = Training(
        seed=0, steps=steps, accumulate=1, devices=1, prompts_per_step=GROUPS, samples_per_prompt=SAMPLES, learning_rate=1e-4,
        rank=RANK, alpha=0.05, alpha_start=None, alpha_high=None, kl="reward", baseline="leave_one_out", advantages="batch",
        gradient_clip=1.0, checkpoint_every=10**6,
    )  # fmt: skip
    policy = steerable(subject, objectives)

    def rewards(documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return np.tile(word_count(documents, responses)[:, None], (1, objectives))

    dirichlet = Dirichlet(kind="dirichlet", concentration=1.0)
    module = ClpModule(policy, training, dirichlet, subject.documents, rewards, seed=0)

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit(module, checkpoints=Path(folder), every=10**6, callbacks=gates, show_progress=False)

    return train
