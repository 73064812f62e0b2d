"""One steerable policy beside its rewards, for a person who tries it: answers while they are written, then their rewards."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clp_lightning.config.parameters import Config
from clp_lightning.data.transcripts import from_transcript
from clp_lightning.errors import ClpError, make
from clp_lightning.paths import MODELS
from clp_lightning.serving.detokenize import Detokenizer


class Setting(NamedTuple):
    """How one answer is steered: a weighting [K], None for the reference policy; a KL strength where the policy takes one."""

    weighting: np.ndarray | None
    alpha: float | None = None


class Playground:
    """A policy and the rewards that it was trained for; one request at a time, others wait.

    Built by `load`; `policy` is a `SteerablePolicy`, `rewards` a `RewardSet` with the normalization of the run that is shown.
    `read` makes a document of a text: of a run of conversations the text is a transcript.
    """

    def __init__(self, policy: Any, rewards: Any, read: Callable[[str], str] = str) -> None:
        self.policy, self.rewards, self.read = policy, rewards, read
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, folder: Path, root: Path, params: Mapping[str, Any], normalization: Mapping[str, Mapping[str, float]]
    ) -> "Playground":
        """Load the policy of `folder` and the rewards below `root`; `params` and `normalization` are those of a run.

        Raises `ClpError` when a folder is missing, when the parameters are of another version of this code, or when the
        policy steers other objectives than the run has.
        """
        from pydantic import ValidationError

        from clp_lightning.policy.steerable import SteerablePolicy
        from clp_lightning.rewards.reward_set import RewardSet

        try:
            config = Config.model_validate(params)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ClpError(
                f"the run's parameters are of another version of CLP Lightning ({where}); run {make('repro')} again"
            ) from error
        policy = SteerablePolicy.from_pretrained(folder)
        if policy.objectives != config.objectives:
            raise ClpError(
                f"{folder} steers {', '.join(policy.objectives)}, but the run has {', '.join(config.objectives)}; choose "
                f"the run that the models were made with, or run {make('repro')}"
            )
        rewards = RewardSet.from_config(config, root, None)
        converses = config.data.kind == "table" and config.data.prompt is None
        return cls(
            policy, RewardSet(rewards.rewards, {"objectives": normalization}), from_transcript if converses else str
        )

    def write(
        self, text: str, settings: Sequence[Setting], *, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[list[str]]:
        """Yield the answers of all settings after each further token, and complete at last.

        Temperature 0 is greedy. All settings sample with the same random numbers. Raises `UsageError` for an empty text.
        """
        with self._lock:
            writers = dict(enumerate(self._writer(text, setting, temperature, seed) for setting in settings))
            answers = [""] * len(settings)
            while writers:
                for position, writer in list(writers.items()):
                    answer = next(writer, None)
                    if answer is None:
                        del writers[position]
                    else:
                        answers[position] = answer
                yield list(answers)

    def score(self, text: str, answers: Sequence[str]) -> np.ndarray:
        """Return the standardized rewards [N, K] of answers to one text."""
        with self._lock:
            return np.asarray(self.rewards([self.read(text)] * len(answers), answers))

    def _writer(self, text: str, setting: Setting, temperature: float, seed: int) -> Iterator[str]:
        import torch

        policy = self.policy
        weighting = None if setting.weighting is None else np.asarray(setting.weighting, dtype=np.float64)[None]
        coefficients = policy.coefficients(weighting, 1, setting.alpha if weighting is not None else None)
        prompts = policy.tokenize([self.read(text)], coefficients)
        generator = torch.Generator().manual_seed(seed)
        uniform = policy.random_numbers(1, generator)
        tokens: list[int] = []
        so_far = Detokenizer(policy.text)
        for step in policy.steps(prompts, coefficients, uniform, samples=1, temperature=temperature):
            tokens.append(int(step.ids[0]))
            yield so_far(tokens).strip()
        yield policy.decode(torch.tensor([tokens]))[0]


def policies(root: Path) -> dict[str, Path]:
    """Return the policies of a project that take any weighting, by name; the champion first, if there is one."""
    from clp_lightning.files import read_json

    found: dict[str, Path] = {}
    for card in sorted((root / MODELS).glob("*/clp.json")):
        try:
            steerable = not read_json(card, remedy="run `dvc repro`").get("listed")
        except (ClpError, AttributeError):
            continue  # a broken card is said when its policy is chosen by name, not when others are
        if steerable:
            found[card.parent.name] = card.parent
    try:
        entry = read_json(root / MODELS / "champion.json", remedy="")
        folder = root / MODELS / "kept" / entry["id"] / entry["method"]
        if folder.is_dir():
            return {f"champion ({entry['method']})": folder} | found
    except (ClpError, KeyError, TypeError):
        pass  # the page Runs says what is wrong with the champion's file
    return found
