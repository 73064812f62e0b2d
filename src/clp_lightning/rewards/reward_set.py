"""Rewards as plug-ins, their frozen normalization, and monitors that are watched but never optimized.

A reward is any callable that follows `Reward`. Its values are standardized with mean and deviation measured once on samples
of the reference policy, written to disk, and used wherever a reward is trained on or reported.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clp_lightning.config.parameters import Config
from clp_lightning.config.rewards import RewardSection
from clp_lightning.errors import ClpError, one_line
from clp_lightning.files import fingerprint, read_json
from clp_lightning.rewards.cache import Cache
from clp_lightning.rewards.calls import Function, Http
from clp_lightning.rewards.judge import Judge
from clp_lightning.rewards.models import Encoder, Learned, Similarity
from clp_lightning.rewards.text import Brevity, Length, Pattern, Readability, Rouge
from clp_lightning.rewards.words import words


class Reward(Protocol):
    """Scores responses: documents and responses of one length B -> float64 [B], larger is better."""

    def __call__(self, documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return raw values, before normalization."""
        ...


class ReferenceReward(Protocol):
    """A reward whose `needs_references` is true is given the reference summaries too."""

    needs_references: bool

    def __call__(self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return raw values, before normalization."""
        ...


# keys of a section that change how scores are computed, but not the scores
UNSCORED = ("cache", "batch_size", "timeout", "retries", "token_env", "max_unreadable")

# kind in params.yaml -> reward of (section, project folder, compute.device); a plug-in adds its kind here and its section to
# config/rewards.py
REGISTRY: dict[str, Callable[[Any, Path, str], Reward | ReferenceReward]] = {
    "learned": lambda section, root, device: Learned(
        section.model,
        section.batch_size,
        index=section.index,
        template=section.template,
        max_tokens=section.max_tokens,
        allow_pickle=section.allow_pickle,
        root=root,
        device=device,
    ),
    "brevity": lambda section, root, device: Brevity(section.min_words),
    "length": lambda section, root, device: Length(section),
    "regex": lambda section, root, device: Pattern(section),
    "readability": lambda section, root, device: Readability(),
    "rouge": lambda section, root, device: Rouge(section.metric),
    "similarity": lambda section, root, device: Similarity(
        Encoder(
            section.encoder, batch_size=section.batch_size, max_tokens=section.max_tokens, root=root, device=device
        ),
        to_reference=section.to == "reference",
    ),
    "python": lambda section, root, device: Function(section, root),
    "http": lambda section, root, device: Http(section),
    "judge": lambda section, root, device: Judge(section),
}


class RewardSet:
    """The K rewards of a run, in order, with their frozen normalization.

    `references` gives documents their reference summaries, for the rewards that read one; `caches` the scores that are kept.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward | ReferenceReward],
        normalization: Mapping[str, Any] | None = None,
        references: Mapping[str, str] | None = None,
        caches: Mapping[str, Cache] | None = None,
    ) -> None:
        self.rewards, self.normalization = dict(rewards), normalization
        self.references, self.caches = references or {}, caches or {}
        missing = set(self.rewards) - set(normalization["objectives"]) if normalization else set()
        if missing:
            raise ClpError(
                f"normalization lacks {', '.join(sorted(missing))}; run the stage normalization (`dvc repro`)"
            )

    @classmethod
    def from_config(
        cls, config: Config, root: Path, normalization: Path | None, references: Mapping[str, str] | None = None
    ) -> "RewardSet":
        """Build the rewards of `params.yaml`; `normalization` is the file that the stage of that name wrote."""
        built, caches = {}, {}
        for name, section in config.rewards.items():
            built[name] = _named(name, REGISTRY[section.kind], section, root, config.compute.device)
            if section.cache != "none":
                source = getattr(built[name], "source", None)  # another file for other code
                caches[name] = Cache(disk_file(name, section, root, source) if section.cache == "disk" else None)
        measured = (
            read_json(normalization, remedy="run the stage normalization (`dvc repro`)") if normalization else None
        )
        return cls(built, measured, references, caches)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the rewards, in order."""
        return tuple(self.rewards)

    def raw(
        self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return raw rewards, float64 [B, K]; a reward that raises, or returns NaN or a wrong shape, is a `ClpError`.

        `references` are the responses' reference summaries where the set's own (by document) do not serve.
        """
        if references is None:
            references = [self.references.get(document, "") for document in documents]
        columns = [self._column(name, documents, responses, references) for name in self.rewards]
        return np.stack(columns, axis=1)

    def __call__(
        self, documents: Sequence[str], responses: Sequence[str], references: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return normalized rewards, float64 [B, K]: `(raw - mean) / std` of the reference policy's samples."""
        if self.normalization is None:
            raise ClpError("rewards have no normalization yet; run the stage normalization (`dvc repro`)")
        scales = [self.normalization["objectives"][name] for name in self.objectives]
        mean, std = (np.array([scale[key] for scale in scales]) for key in ("mean", "std"))
        return (self.raw(documents, responses, references) - mean) / std

    def _column(
        self, name: str, documents: Sequence[str], responses: Sequence[str], references: Sequence[str]
    ) -> np.ndarray:
        reward, texts = self.rewards[name], [documents, responses]
        if getattr(reward, "needs_references", False):
            for document, reference in zip(documents, references, strict=True):
                if not reference.strip():
                    raise ClpError(
                        f"reward {name} reads the reference summary, and {document[:60]!r} has none;"
                        " take prompts of the corpus, or another reward"
                    )
            texts.append(references)
        cache = self.caches.get(name)
        if cache is None:
            return _checked(name, reward, texts)
        rows = list(zip(*texts, strict=True))
        return cache.scores(rows, lambda new: _checked(name, reward, [[text[row] for row in new] for text in texts]))


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

    def __init__(self, encoder: str, device: str | None = None) -> None:
        self._embed, self._rouge = Encoder(encoder, device=device), Rouge("rougeL")

    @classmethod
    def from_config(cls, config: Config) -> "Monitors":
        """Use the encoder that params.yaml names."""
        return cls(config.encoder, config.compute.device)

    def __call__(
        self, documents: Sequence[str], references: Sequence[str], responses: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Return `rouge_l` (F-measure, 0..1), `coverage` (cosine, -1..1) and `distinct_2` (0..1), float64 [B] each."""
        coverage = (self._embed(documents) * self._embed(responses)).sum(-1)
        return {
            "rouge_l": self._rouge(documents, responses, references),
            "coverage": coverage,
            "distinct_2": np.array([distinct_2(response) for response in responses], dtype=np.float64),
        }


def distinct_2(text: str) -> float:
    """Return the share of different bigrams among a text's bigrams (Li et al. 2016); 1 for fewer than two words."""
    bigrams = list(itertools.pairwise(words(text.lower())))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def disk_file(name: str, section: RewardSection, root: Path, source: str | None = None) -> Path:
    """Return the file of a reward's scores; another one when a key changes that may change them, or the file `source`."""
    values = {key: value for key, value in vars(section).items() if key not in UNSCORED}
    parts = [values] if source is None else [values, Path(source)]
    return root / "build" / "reward-cache" / name / f"{fingerprint(*parts)}.jsonl"


def _named(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reward's function; what it raises, which may be anything, becomes one line that names the reward."""
    try:
        return function(*arguments)
    except ClpError as error:
        raise type(error)(f"reward {name}: {error}") from error
    except Exception as error:
        raise ClpError(
            f"reward {name} failed: {type(error).__name__}: {one_line(error)};"
            " mend the reward or remove it from params.yaml"
        ) from error


def _checked(name: str, reward: Reward | ReferenceReward, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return a reward's values, of which there is a finite one for each response."""
    responses = texts[1]
    if not responses:
        return np.empty(0)
    values = _named(name, lambda: np.asarray(reward(*texts), dtype=np.float64))
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
