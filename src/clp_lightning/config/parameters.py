"""`params.yaml` -> frozen, typed configuration; unknown keys and bad values are rejected with the key's path.

`params.yaml` states every value, so that it stands in one place only. Of rewards (`config.rewards`) some keys may be left
out, and those of `generation` that have a default here, which files and cards written before they existed lack.
"""

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clp_lightning.config.data import (
    ApiDescriptions,
    Compute,
    Corruptions,
    Layers,
    Pretrained,
    RandomModel,
    RewardModel,
    Table,
)
from clp_lightning.config.derived import Derived, KlStrength
from clp_lightning.config.methods import REFERENCE, Method, check_methods, check_training
from clp_lightning.config.rewards import Rewards
from clp_lightning.config.training import Training, check_annealing
from clp_lightning.config.types import Name, Positive, Rate, Section, first_problem, yaml_problem
from clp_lightning.errors import UsageError
from clp_lightning.files import utf8

TEMPLATE = r"\{document\}"


class Sft(Section):
    """Supervised finetuning; the merged result is the reference policy."""

    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    rank: Positive


class Normalization(Section):
    """How many reference samples measure each reward's mean and deviation."""

    prompts: Positive


class Evaluation(Section):
    """The sweep on unseen prompts and its statistics."""

    weightings: Annotated[int, Field(ge=2)]  # points per edge of the lattice; of a single reward: KL strengths
    off_grid: Annotated[int, Field(ge=0)]  # weightings drawn at random between them: does steering hold there?
    prompts: Annotated[int, Field(ge=2)]
    samples_per_prompt: Positive
    batch_size: Positive
    bootstrap_draws: Annotated[int, Field(ge=100)]
    reference_point: float  # normalized reward, the same for every objective
    # how test prompts are drawn: each as likely as any other, or as many from each group as it has to give
    draw: Literal["random", "even"] = "random"
    # column of the corpus whose prompts are alike, for draws and intervals; null: service, or the group of own rows
    group: Annotated[str, Field(min_length=1)] | None = None


class Promotion(Section):
    """When a newly trained policy takes the place of the one in use."""

    method: Name  # the one that is shipped
    # what decides: J averaged over the weightings, or a hypervolume of docs/metrics.md
    statistic: Literal[
        "mean_j", "hypervolume", "hypervolume_above_reference", "regularized_hypervolume",
        "regularized_hypervolume_above_reference",
    ] = "mean_j"  # fmt: skip
    prompts: Annotated[int, Field(ge=2)] | None = (
        None  # drawn anew for each decision; null: as many as evaluation.prompts
    )
    probability: Annotated[
        float, Field(ge=0, lt=1)
    ]  # at least so sure that its statistic is the larger one; 0: guards alone
    worst_case_margin: Annotated[
        float, Field(ge=0)
    ]  # by how much an objective's worst mean reward may fall, standardized
    max_kl: Annotated[float, Field(gt=0)]  # to the reference policy, nats per response, mean over the weightings
    max_length_ratio: Annotated[float, Field(gt=1)]  # mean length against the reference policy's, either way


class Generation(Section):
    """The prompt and its limits in tokens, for training and use."""

    max_prompt_tokens: Positive
    max_new_tokens: Positive
    template: Annotated[str, Field(pattern=TEMPLATE)]
    chat: bool  # true: the tokenizer's chat template, of which the filled template is the user's message
    end_token: str | None  # ends responses, those to learn from too, beside the tokenizer's and the model's own ends
    long_prompts: Literal["cut", "refuse"] = "cut"  # what happens to prompts that do not fit
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)  # e.g. enable_thinking: false


class Config(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0)]  # of the data, the reference policy, the learned reward and the test prompts
    data: Annotated[ApiDescriptions | Table, Field(discriminator="kind")]
    base: Annotated[Pretrained | RandomModel, Field(discriminator="kind")]
    compute: Compute
    layers: Layers | None  # null finds attention, MLP and output layers by their place in the model
    generation: Generation
    sft: Sft | None  # null: the reference policy is the pretrained model as it is
    encoder: Annotated[
        str, Field(min_length=1)
    ]  # of the monitor `coverage`: `package:NAME/PATH`, a folder or a hub name
    reward_models: dict[Name, RewardModel]  # rewards that are learned here; `rewards` says which of them are used
    rewards: Rewards
    normalization: Normalization
    training: Training
    methods: dict[Name, Method]
    derived: dict[Name, Derived]
    evaluation: Evaluation
    promotion: Promotion

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if not self.rewards:
            raise ValueError("rewards: name at least one objective")
        if not self.methods:
            raise ValueError("methods: name at least one method to compare with the reference policy")
        check_methods(self.methods, self.derived, self.objectives, self.training.rank)
        if self.promotion.method not in self.methods:
            raise ValueError(f"promotion.method: no such method; choose one of {', '.join(self.methods)}")
        self._check_reward_models()
        if self.generation.chat_template_kwargs and not self.generation.chat:
            raise ValueError(
                "generation.chat_template_kwargs: only a chat template reads them; set generation.chat to true, or them to {}"
            )
        for name, row in self.methods.items():
            check_training(name, row, self.training, len(self.objectives))
        training = self.training
        if training.alpha_high is not None and training.alpha_high <= training.alpha:
            raise ValueError(
                "training.alpha_high: must be larger than training.alpha; null trains at that one KL strength"
            )
        check_annealing("training", training, training.alpha_start)
        self._check_kl_strengths()
        return self

    def _check_kl_strengths(self) -> None:
        lowest, highest = self.training.alpha, self.training.alpha_high
        for name, row in self.derived.items():
            if not isinstance(row.decoding, KlStrength):
                continue
            if highest is None or len(self.objectives) == 1:
                why = "training.alpha_high is null" if highest is None else "with one reward the weightings are them"
                raise ValueError(
                    f"derived.{name}.decoding.kind: kl_strength needs several rewards and a range of KL strengths; {why}"
                )
            if not lowest <= row.decoding.alpha <= highest:
                raise ValueError(
                    f"derived.{name}.decoding.alpha: {row.decoding.alpha:g} is outside of the KL strengths that training draws, "
                    f"{lowest:g} to {highest:g}; choose one between"
                )

    def _check_reward_models(self) -> None:
        for name, model in self.reward_models.items():
            if name in (*self.methods, REFERENCE, "base", "kept", "champion"):
                raise ValueError(f"reward_models.{name}: models/{name} is something else already; choose another name")
            if isinstance(model.pairs, Corruptions) and self.data.kind != "api_descriptions":
                raise ValueError(
                    f"reward_models.{name}.pairs: corruptions are made from data of the kind api_descriptions; use the kind "
                    "preferences or scores"
                )
        for name, reward in self.rewards.items():
            folder = getattr(reward, "model", None)
            if isinstance(folder, str) and folder.startswith("models/") and folder[7:] not in self.reward_models:
                known = ", ".join(f"models/{other}" for other in self.reward_models) or "none"
                raise ValueError(f"rewards.{name}.model: reward_models trains no {folder}; it trains {known}")

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of everything that is evaluated: the reference policy, what was trained, what is derived from it."""
        return (REFERENCE, *self.methods, *self.derived)

    def budget(self, method: str) -> Training:
        """Return the section `training` with what the method's row says instead."""
        return self.methods[method].training.instead_of(self.training)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of params.yaml."""
        return tuple(self.rewards)


def load_config(path: Path | str = "params.yaml") -> Config:
    """Read and check a parameter file.

    Raises `UsageError` with the key's path, the value found and what is expected; the first problem only, with a
    count of the others.
    """
    return check_values(read_values(Path(path)), Path(path))


def read_values(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; raises `UsageError` with the file and the line."""
    try:
        raw = path.read_bytes()
        # YAML allows UTF-16 too, with its mark; everything else is UTF-8
        text = raw if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else utf8(raw, path)
        values = YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; run in a project folder or name the file with --params") from error
    except YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {yaml_problem(error)}; correct it there") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values; start from the repository's params.yaml")
    return values


def check_values(values: dict[str, Any], path: Path) -> Config:
    """Return the configuration that `values` state; raises `UsageError` with the file that they come from and the key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, values)}") from None
