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
from clp_lightning.config.methods import REFERENCE, KlEstimate, Method, check_methods
from clp_lightning.config.rewards import Rewards
from clp_lightning.config.types import Name, Positive, Rate, Section, Share, first_problem, yaml_problem
from clp_lightning.errors import UsageError
from clp_lightning.files import utf8
from clp_lightning.weightings import rotations_of_samples

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


class Training(Section):
    """The budget and the objective, the same for every method."""

    seed: Annotated[int, Field(ge=0)]  # of the experts and of all sampling; runs that differ in it only are comparable
    steps: Positive
    accumulate: Positive  # micro-batches per optimizer step
    devices: Positive  # processes, each with a micro-batch of its own
    prompts_per_step: Positive  # of a micro-batch, each with a weighting of its own
    samples_per_prompt: Positive
    learning_rate: Rate
    rank: Positive | Literal["full"]  # of a low-rank expert, or experts with all parameters of their layers
    alpha: Share  # KL strength
    alpha_start: Share | None  # if given, alpha falls from here, geometrically, over the first 70 % of the steps
    alpha_high: Share | None  # if given, alpha is drawn from [alpha, alpha_high], and the policy is conditioned on it
    kl: KlEstimate
    baseline: Literal["leave_one_out", "regression", "value"]
    advantages: Literal["batch", "objective", "none"]  # what they are normalized over
    gradient_clip: Annotated[float, Field(gt=0)]
    checkpoint_every: Positive


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
        training = self.training
        if training.advantages == "objective" and training.baseline != "leave_one_out":
            raise ValueError(
                "training.baseline: advantages per objective need leave_one_out; choose it, or other advantages"
            )
        for name, row in self.methods.items():
            self._check_samples(name, row)
            self._check_annealing(f"methods.{name}.training", row.training.alpha_start)
        if training.alpha_high is not None and training.alpha_high <= training.alpha:
            raise ValueError(
                "training.alpha_high: must be larger than training.alpha; null trains at that one KL strength"
            )
        self._check_annealing("training", training.alpha_start)
        self._check_kl_strengths()
        return self

    def _check_annealing(self, section: str, start: float | None) -> None:
        if start is None:
            return
        if not 0 < self.training.alpha < start:
            raise ValueError(
                f"{section}.alpha_start: must be larger than training.alpha, and that larger than 0; null keeps alpha constant"
            )
        if self.training.alpha_high is not None:
            raise ValueError(
                f"{section}.alpha_start: a policy conditioned on alpha has no single one to start from; use null"
            )

    def _check_samples(self, name: str, row: Method) -> None:
        samples, own = self.budget(name).samples_per_prompt, row.training.samples_per_prompt is not None
        where = f"methods.{name}.training.samples_per_prompt" if own else "training.samples_per_prompt"
        if samples < 2 and self.training.baseline == "leave_one_out":
            raise ValueError(f"{where}: leave-one-out needs another sample; set it to 2 or more")
        if row.relabel and self.training.baseline != "leave_one_out":
            raise ValueError(f"training.baseline: methods.{name}.relabel needs leave_one_out; choose it")
        if row.relabel and len(self.objectives) > 1 and rotations_of_samples(len(self.objectives), samples) == 1:
            raise ValueError(
                f"{where}: methods.{name}.relabel divides them among rotations of a weighting, two or more each, which {samples} "
                f"cannot be; set it to {2 * len(self.objectives)}"
            )

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
        own = self.methods[method].training.model_dump(exclude_none=True)
        return self.training.model_copy(update=own) if own else self.training

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
