"""Rewards as plug-ins, their frozen normalization, and monitors that are watched but never optimized.

A reward is any callable that follows `Reward`. Its values are standardized with mean and deviation measured once on samples
of the reference policy, written to disk, and used wherever a reward is trained on or reported.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clp_lightning.config import BrevityReward, Config, LearnedReward
from clp_lightning.errors import ClpError
from clp_lightning.files import read_json
from clp_lightning.sources import resolve

MAX_TOKENS = 64  # of document and response together: the median document has 30, a response rarely 20


class Reward(Protocol):
    """Scores responses: documents and responses of one length B -> float64 [B], larger is better."""

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return raw values, before normalization."""
        ...


class Brevity:
    """Minus the number of words, never above `-min_words`: an answer shorter than that gains nothing."""

    def __init__(self, min_words: int) -> None:
        self.min_words = min_words

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Count words separated by white space."""
        return -np.maximum([len(response.split()) for response in responses], self.min_words).astype(np.float64)


class Learned:
    """A transformers sequence-classification folder with one logit, read as a cross-encoder; loaded at first use."""

    def __init__(self, folder: Path | str, batch_size: int = 64, max_tokens: int = MAX_TOKENS) -> None:
        self.folder, self.batch_size, self.max_tokens = Path(folder), batch_size, max_tokens
        self._loaded: Any = None

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return the logit of each (document, response); raises `ClpError` when the folder is missing."""
        import torch

        model, tokenizer = self._load()
        values = np.empty(len(documents), dtype=np.float64)
        order = np.argsort(
            [len(document) + len(response) for document, response in zip(documents, responses, strict=True)]
        )
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            tokens = tokenizer(
                [documents[row] for row in rows],
                [responses[row] for row in rows],
                truncation=True,
                max_length=self.max_tokens,
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                values[rows] = model(**tokens).logits[:, 0].double().cpu().numpy()
        return values

    def _load(self) -> Any:
        if self._loaded is None:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            if not (self.folder / "config.json").is_file():
                raise ClpError(f"no reward model at {self.folder}; run the stage reward_model (`dvc repro`)")
            device = "cuda" if torch.cuda.is_available() else "cpu"
            model = AutoModelForSequenceClassification.from_pretrained(str(self.folder), local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
            self._loaded = (model.to(device).eval(), tokenizer)
        return self._loaded


# kind in params.yaml -> reward; a plug-in adds its kind here and its section to config.py
REGISTRY: dict[str, Callable[[Any, Path], Reward]] = {
    "learned": lambda section, root: Learned(root / section.model),
    "brevity": lambda section, root: Brevity(section.min_words),
}


class RewardSet:
    """The K rewards of a run, in order, with their frozen normalization."""

    def __init__(self, rewards: Mapping[str, Reward], normalization: Mapping[str, Any] | None = None) -> None:
        self.rewards, self.normalization = dict(rewards), normalization
        missing = set(self.rewards) - set(normalization["objectives"]) if normalization else set()
        if missing:
            raise ClpError(
                f"normalization lacks {', '.join(sorted(missing))}; run the stage normalization (`dvc repro`)"
            )

    @classmethod
    def from_config(cls, config: Config, root: Path, normalization: Path | None) -> "RewardSet":
        """Build the rewards of `params.yaml`; `normalization` is the file that the stage of that name wrote."""
        built = {name: _build(section, root) for name, section in config.rewards.items()}
        measured = (
            read_json(normalization, remedy="run the stage normalization (`dvc repro`)") if normalization else None
        )
        return cls(built, measured)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the rewards, in order."""
        return tuple(self.rewards)

    def raw(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return raw rewards, float64 [B, K]; a reward that raises, or returns NaN or a wrong shape, is a `ClpError`."""
        return np.stack([_checked(name, reward, documents, responses) for name, reward in self.rewards.items()], axis=1)

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return normalized rewards, float64 [B, K]: `(raw - mean) / std` of the reference policy's samples."""
        if self.normalization is None:
            raise ClpError("rewards have no normalization yet; run the stage normalization (`dvc repro`)")
        scales = [self.normalization["objectives"][name] for name in self.objectives]
        mean, std = (np.array([scale[key] for scale in scales]) for key in ("mean", "std"))
        return (self.raw(documents, responses) - mean) / std


def measure_normalization(raw: np.ndarray, objectives: Sequence[str]) -> dict[str, Any]:
    """Return mean and standard deviation per objective of raw rewards [B, K]; a constant reward is a `ClpError`."""
    if not np.isfinite(raw).all():
        raise ClpError(
            f"reward {objectives[int(np.argwhere(~np.isfinite(raw))[0][1])]} gave a value that is not finite"
        )
    mean, std = raw.mean(axis=0), raw.std(axis=0, ddof=1)
    for name, deviation in zip(objectives, std, strict=True):
        if deviation < 1e-9:
            raise ClpError(
                f"reward {name} is the same for all {len(raw)} reference samples, so it cannot steer; check rewards.{name}"
            )
    return {
        "objectives": {
            name: {"mean": float(m), "std": float(s)} for name, m, s in zip(objectives, mean, std, strict=True)
        }
    }


class Monitors:
    """Metrics that show reward hacking: ROUGE-L to the reference summary, coverage of the document, distinct bigrams."""

    def __init__(self, encoder: Path) -> None:
        self.encoder = encoder
        self._loaded: Any = None

    @classmethod
    def from_config(cls, config: Config) -> "Monitors":
        """Use the encoder that params.yaml names."""
        return cls(Path(resolve(config.encoder)))

    def __call__(
        self, documents: Sequence[str], references: Sequence[str], responses: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return `rouge_l` (F-measure, 0..1), `coverage` (cosine, -1..1) and `distinct_2` (0..1), float64 [B] each."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        rouge = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, responses, strict=True)]
        coverage = (self._embed(documents) * self._embed(responses)).sum(-1)
        return {
            "rouge_l": np.array(rouge, dtype=np.float64),
            "coverage": coverage,
            "distinct_2": np.array([distinct_2(response) for response in responses], dtype=np.float64),
        }

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        import torch
        from torch.nn import functional
        from transformers import AutoModel, AutoTokenizer

        if self._loaded is None:
            model = AutoModel.from_pretrained(str(self.encoder), local_files_only=True).eval()
            self._loaded = (model, AutoTokenizer.from_pretrained(str(self.encoder), local_files_only=True))
        model, tokenizer = self._loaded
        unique = list(dict.fromkeys(texts))  # a sweep repeats its documents at every weighting
        parts = []
        for start in range(0, len(unique), 64):
            tokens = tokenizer(
                unique[start : start + 64], truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            parts.append(functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).double().numpy())
        index = {text: row for row, text in enumerate(unique)}
        return np.concatenate(parts)[[index[text] for text in texts]]


def distinct_2(text: str) -> float:
    """Return the share of different bigrams among a text's bigrams (Li et al. 2016); 1 for fewer than two words."""
    words = text.lower().split()
    bigrams = list(itertools.pairwise(words))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def _build(section: LearnedReward | BrevityReward, root: Path) -> Reward:
    return REGISTRY[section.kind](section, root)


def _checked(name: str, reward: Reward, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    try:
        values = np.asarray(reward(documents, responses), dtype=np.float64)
    except ClpError:
        raise
    except Exception as error:  # a plug-in may raise anything
        raise ClpError(
            f"reward {name} failed: {type(error).__name__}: {error}; mend the reward or remove it from params.yaml"
        ) from error
    if values.shape != (len(responses),):
        raise ClpError(
            f"reward {name} returned shape {values.shape} for {len(responses)} responses; return one number for each"
        )
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise ClpError(
            f"reward {name} returned {values[row]} for response {row + 1} ({responses[row][:60]!r}); return finite numbers"
        )
    return values
