"""(c) One training step of CLP / one of TRL's RLOO trainer: same model, batch, lengths, samples per prompt and rank.

TRL cannot train an adapter on the output layer, so its step has one layer and one expert less to do than CLP's.
"""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from bench.steering.measures import LINEAR
from bench.steering.subjects import (
    GENERATION,
    GROUPS,
    RANK,
    SAMPLES,
    Gate,
    Subject,
    prepare,
    steerable,
    tokenizer,
    word_count,
)
from bench.steering.turns import StepTurns, entry


class TrlGate(TrainerCallback):
    """Makes TRL's trainer wait for its turn."""

    def __init__(self, turns: StepTurns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait."""
        self.turns.begin(self.name)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Pass the turn on."""
        self.turns.end(self.name)


def training_step(subject: Subject, rounds: int) -> dict[str, Any]:
    """Measure `rounds` steps of each trainer in turns."""
    ours, theirs = "CLP, K = 2", "TRL RLOO"
    turns = StepTurns([ours, theirs])
    seconds = turns.run({
        ours: prepare(subject, 2, rounds + 1, [Gate(turns, ours)]),
        theirs: _prepare_rloo(subject, rounds + 1, TrlGate(turns, theirs)),
    })  # fmt: skip
    what = f"training step, {GROUPS} prompts x {SAMPLES} samples, {GENERATION.max_prompt_tokens} + "
    return entry("c", f"{what}{GENERATION.max_new_tokens} tokens, rank {RANK}", seconds, 0.6)


def _prepare_rloo(subject: Subject, steps: int, gate: TrainerCallback) -> Callable[[], Any]:
    base, reader = steerable(subject, plain=True), tokenizer(subject)
    ids = base.tokenize(subject.documents).ids
    prompts = Dataset.from_dict({"prompt": reader.batch_decode(ids)})
    base.model.generation_config.pad_token_id = reader.pad_token_id

    def reward(completions: list[str], **_: Any) -> list[float]:
        return word_count([], completions).tolist()

    config = RLOOConfig(
        output_dir="build/bench/trl", max_steps=steps, per_device_train_batch_size=GROUPS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=GENERATION.max_new_tokens, beta=0.05, learning_rate=1e-4, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        use_cpu=True, bf16=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=base.model, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=reader,
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR[:-1]), callbacks=[gate],
    )  # fmt: skip
    return trainer.train
