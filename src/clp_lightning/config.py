"""`params.yaml` -> frozen, typed configuration; unknown keys and bad values are rejected with the key's path.

`params.yaml` states every value: there are no defaults in code, so a value stands in one place only.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from clp_lightning.config_errors import first_problem, yaml_problem
from clp_lightning.config_methods import REFERENCE, Derived, Method, check_methods
from clp_lightning.config_rewards import Rewards
from clp_lightning.config_types import Name, Positive, Rate, Section, Share
from clp_lightning.errors import UsageError

TEMPLATE = r"\{document\}"


class Corpus(Section):
    """Summarization pairs `name + body -> first sentence` from botocore's API descriptions."""

    max_body_words: Positive
    max_summary_words: Positive
    min_overlap: Share  # share of the summary's content words that occur in name + body
    validation_services: Rate
    test_services: Rate
    limit: Positive | None  # rows kept in all, sampled with the seed; null keeps every row


class PackagedGguf(Section):
    """A GGUF file that an installed asset package ships."""

    kind: Literal["gguf"]
    package: str
    file: str


class RandomModel(Section):
    """A tiny Llama with random parameters and a tokenizer trained on the corpus, for tests."""

    kind: Literal["random"]
    vocabulary: Positive
    hidden: Positive
    layers: Positive
    heads: Positive


class Sft(Section):
    """Supervised finetuning; the merged result is the reference policy."""

    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    rank: Positive


class PairCounts(Section):
    """Preference pairs per kind of negative, in the training split; the held-out split has a fifth of each."""

    other_same_service: Positive
    other_service: Positive
    halved: Positive
    words_dropped: Positive
    repeated: Positive
    name_only: Positive
    copied: Positive
    generic: Positive


class RewardModel(Section):
    """Bradley-Terry training of the learned reward on an encoder package."""

    encoder_package: str
    encoder_folder: str
    steps: Positive
    batch_size: Positive
    learning_rate: Rate


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
    kl: Literal[
        "reward", "loss"
    ]  # where the KL penalty enters: sequence-level in the return, or token-level in the loss
    baseline: Literal["leave_one_out", "regression", "value"]
    advantages: Literal["batch", "objective", "none"]  # what they are normalized over
    gradient_clip: Annotated[float, Field(gt=0)]
    checkpoint_every: Positive


class Evaluation(Section):
    """The sweep on unseen services and its statistics."""

    weightings: Annotated[int, Field(ge=2)]  # points per edge of the lattice on the simplex
    off_grid: Annotated[int, Field(ge=0)]  # weightings drawn at random between them: does steering hold there?
    prompts: Annotated[int, Field(ge=2)]
    samples_per_prompt: Positive
    batch_size: Positive
    bootstrap_draws: Annotated[int, Field(ge=100)]
    reference_point: float  # normalized reward, the same for every objective


class Promotion(Section):
    """When a newly trained policy takes the place of the one in use."""

    method: Name  # the one that is shipped
    probability: Annotated[float, Field(gt=0.5, lt=1)]  # at least so sure that its hypervolume is the larger one
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


class Config(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0)]  # of the data, the reference policy, the learned reward and the test prompts
    corpus: Corpus
    base: Annotated[PackagedGguf | RandomModel, Field(discriminator="kind")]
    generation: Generation
    sft: Sft
    pairs: PairCounts
    reward_model: RewardModel
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
        check_methods(self.methods, self.derived, self.objectives)
        if self.promotion.method not in self.methods:
            raise ValueError(f"promotion.method: no such method; choose one of {', '.join(self.methods)}")
        if self.corpus.validation_services + self.corpus.test_services >= 1:
            raise ValueError("corpus: validation_services and test_services leave nothing to train on; lower them")
        training = self.training
        if training.advantages == "objective" and training.baseline != "leave_one_out":
            raise ValueError(
                "training.baseline: advantages per objective need leave_one_out; choose it, or other advantages"
            )
        if training.samples_per_prompt < 2 and training.baseline == "leave_one_out":
            raise ValueError("training.samples_per_prompt: leave-one-out needs another sample; set it to 2 or more")
        if training.alpha_high is not None and training.alpha_high <= training.alpha:
            raise ValueError(
                "training.alpha_high: must be larger than training.alpha; null trains at that one KL strength"
            )
        if training.alpha_start is not None and not 0 < training.alpha < training.alpha_start:
            raise ValueError(
                "training.alpha_start: must be larger than training.alpha, and that larger than 0; null keeps alpha constant"
            )
        if training.alpha_start is not None and training.alpha_high is not None:
            raise ValueError(
                "training.alpha_start: a policy conditioned on alpha has no single one to start from; use null"
            )
        return self

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of everything that is evaluated: the reference policy, what was trained, what is derived from it."""
        return (REFERENCE, *self.methods, *self.derived)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of params.yaml."""
        return tuple(self.rewards)


def load_config(path: Path | str = "params.yaml") -> Config:
    """Read and check a parameter file.

    Raises `UsageError` with the key's path, the value found and what is expected; the first problem only, with a
    count of the others.
    """
    path = Path(path)
    try:
        values = YAML(typ="safe", pure=True).load(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; run in a project folder or name the file with --params") from error
    except YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {yaml_problem(error)}; correct it there") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values; start from the repository's params.yaml")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, values)}") from None
