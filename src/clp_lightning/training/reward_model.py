"""Bradley-Terry training of the learned reward: a MiniLM cross-encoder with one logit.

The result is a plain transformers sequence-classification folder. Loss: -log sigmoid(r(chosen) - r(rejected)) (Bradley and
Terry 1952; Stiennon et al. 2020).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from clp_lightning.config.data import RewardModel
from clp_lightning.data.pairs import UNSEEN_KINDS
from clp_lightning.data.splits import read_split
from clp_lightning.errors import ClpError, one_line
from clp_lightning.files import atomic, write_curve
from clp_lightning.paths import resolve
from clp_lightning.policy.loading import chosen_device
from clp_lightning.rewards.batches import Padding
from clp_lightning.rewards.models import Learned, fitting, set_padding
from clp_lightning.training.trainer import StepModule, fit

WARMUP_SHARE = 0.1
HEADS = ("classifier", "pre_classifier", "score")  # what transformers calls the layers that are fresh
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)


class RewardModule(StepModule):
    """Trains all parameters of a cross-encoder on preference pairs; step `t` reads a batch that follows from (seed, t)."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pairs: pd.DataFrame,
        *,
        steps: int,
        batch_size: int,
        learning_rate: float,
        max_tokens: int,
        seed: int,
    ):
        super().__init__(steps)
        self.model, self.tokenizer, self.pairs = model, tokenizer, pairs
        self.batch_size, self.learning_rate, self.max_tokens, self.seed = batch_size, learning_rate, max_tokens, seed
        self.padding = Padding(model, tokenizer)  # as `Learned` reads them
        tokenizer.truncation_side = "right"  # some cut the front; `Learned` reads a pair without its end

    def configure_optimizers(self) -> Any:
        """AdamW; the fresh head learns ten times as fast as the encoder; warm-up, then linear decay."""
        head = [p for name, p in self.model.named_parameters() if name.startswith(HEADS)]
        rest = [p for name, p in self.model.named_parameters() if not name.startswith(HEADS)]
        optimizer = torch.optim.AdamW(
            [{"params": rest, "lr": self.learning_rate}, {"params": head, "lr": 10 * self.learning_rate}],
            weight_decay=0.01,
        )
        return self.linear_decay(optimizer, max(1, round(WARMUP_SHARE * self.steps)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean Bradley-Terry loss of a batch of pairs."""
        rng = np.random.default_rng([self.seed, self.global_step])
        rows = self.pairs.iloc[rng.choice(len(self.pairs), min(self.batch_size, len(self.pairs)), replace=False)]
        documents, answers = [*rows["document"], *rows["document"]], [*rows["chosen"], *rows["rejected"]]
        texts = fitting(self.tokenizer, documents, answers, self.max_tokens), answers
        tokens = self.tokenizer(*texts, truncation=True, max_length=self.max_tokens)
        inputs = self.padding.tensors(self.padding.rows(tokens))
        chosen, rejected = self.model(**inputs).logits[:, 0].chunk(2)
        loss = -functional.logsigmoid(chosen - rejected).mean()
        accuracy = (chosen > rejected).float().mean()
        self.record(loss=loss.item(), accuracy=accuracy.item())
        return loss


def train_reward_model(
    settings: RewardModel, seed: int, pairs: Path, out: Path, checkpoints: Path, device: str | None = None
) -> dict[str, Any]:
    """Train on `pairs`/train, write the folder `out`, return held-out pairwise accuracy overall and per kind.

    Accuracies come with Clopper-Pearson 95 % intervals. Resumes from the last checkpoint in `checkpoints`.
    """
    encoder = resolve(settings.encoder)
    torch.manual_seed(seed)
    model, tokenizer = _classifier(encoder, f"reward_models.{out.name}.encoder")
    module = RewardModule(
        model.to(chosen_device(device)).train(),
        tokenizer,
        read_split(pairs, "train"),
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_tokens=settings.max_tokens,
        seed=seed,
    )
    fit(module, checkpoints=checkpoints, every=max(1, settings.steps // 4))
    with atomic(out) as beside:
        model.save_pretrained(beside)
        tokenizer.model_max_length = settings.max_tokens  # who loads the folder reads as much as it was trained on
        tokenizer.save_pretrained(beside)
        write_curve(module.curve, beside / "training_curve.csv")
    return pairwise_accuracy(Learned(out, device=device), read_split(pairs, "heldout"))


def _classifier(encoder: str, where: str) -> tuple[Any, Any]:
    """Load an encoder with one logit and no dropout: two readings of a pair should differ by the pair alone.

    A classifier loses its head, which is for labels of its own. Raises `ClpError`, with the key `where`, for what is no
    encoder: transformers would make up at random whatever it misses.
    """
    try:
        config = AutoConfig.from_pretrained(encoder, num_labels=1)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            encoder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(encoder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClpError(
            f"{where}: {encoder}: {one_line(error)}; name a folder with safetensors and a tokenizer"
        ) from error
    other = [name for name, *_ in report["mismatched_keys"]] + [n for n in report["missing_keys"] if "pooler" not in n]
    if fresh := sorted(name for name in other if not name.startswith(HEADS)):
        raise ClpError(
            f"{where}: {encoder} lacks {fresh[0]} of {type(model).__name__}, or has it in another size; name an encoder whose"
            " weights fit its config.json"
        )
    set_padding(model, tokenizer)
    return model, tokenizer


def pairwise_accuracy(reward: Learned, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the share of pairs in which the chosen answer scores higher, overall and per kind of negative.

    `heldout` covers the kinds that were trained on; `unseen_kinds` are attacks that were not (`pairs.UNSEEN_KINDS`).
    """
    documents = pairs["document"].tolist()
    right = reward(documents, pairs["chosen"].tolist()) > reward(documents, pairs["rejected"].tolist())
    kinds = pairs["kind"].to_numpy()
    trained = ~np.isin(kinds, UNSEEN_KINDS)
    shares = {kind: _share(right[kinds == kind]) for kind in sorted(set(kinds))}
    unseen = {"unseen_kinds": {kind: share for kind, share in shares.items() if kind in UNSEEN_KINDS}}
    return {
        "heldout": _share(right[trained]),
        "per_kind": {kind: share for kind, share in shares.items() if kind not in UNSEEN_KINDS},
        **(unseen if unseen["unseen_kinds"] else {}),
    }


def _share(right: np.ndarray) -> dict[str, float]:
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95)
    return {
        "accuracy": float(right.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "pairs": len(right),
    }
