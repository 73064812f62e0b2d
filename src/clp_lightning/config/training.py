"""The section `training` of `params.yaml`, what a method's row says instead of it, and what a step minimizes."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from clp_lightning.config.types import FunctionName, Positive, Rate, Section, Share
from clp_lightning.weightings import rotations_of_samples

# where the KL penalty enters: sampled, in the return; sampled per token, in the loss; or over all tokens, in both
KlEstimate = Literal["reward", "loss", "exact"]
Advantages = Literal["batch", "objective", "gdpo", "rvpo", "none"]
PER_OBJECTIVE = ("objective", "gdpo", "rvpo")  # advantages that never form w.R
Above0 = Annotated[float, Field(gt=0)]


class Cvar(Section):
    """Risk: instead of w.R the mean of its worst share, of a prompt's responses (CVaR, arXiv 2403.06323)."""

    kind: Literal["cvar"]
    tau: Annotated[float, Field(gt=0, le=1)]  # the share that counts; 1 is the mean of all


class OnlineDpo(Section):
    """Preferences: the best of a prompt's responses by w.R shall be likelier than the worst (MO-ODPO, arXiv 2503.00295).

    `training.baseline`, `advantages`, `rvpo_sharpness`, `risk` and the KL strengths do not apply; `training.kl` says only how the
    curve's KL is measured. beta = alpha / (1 - alpha) is what the KL strength would be if w.R gave the odds of a preference.
    """

    kind: Literal["online_dpo"]
    beta: Above0 = 0.1  # the smaller, the further a pair is driven apart: to some 1 / beta nats


class MiEpo(Section):
    """`online_dpo`, and a response shall be likelier at its own weighting than at another of Q's (MI-EPO, arXiv 2607.01392)."""

    kind: Literal["mi_epo"]
    beta: Above0 = 0.1  # as of online_dpo
    beta_w: Above0 = 0.01  # of the comparison of weightings


class CustomLoss(Section):
    """A function of yours: takes a step's batch (`training.method_losses.Batch`) and returns one number to minimize."""

    kind: Literal["custom"]
    function: FunctionName  # module:function, of the project's folder or an installed module


Loss = OnlineDpo | MiEpo | CustomLoss


class OwnTraining(Section):
    """What a method's training does otherwise than the section `training` says; null: as it says."""

    steps: Positive | None = None
    prompts_per_step: Positive | None = None
    samples_per_prompt: Positive | None = None
    learning_rate: Rate | None = None
    gradient_clip: Above0 | None = None
    kl: KlEstimate | None = None
    alpha_start: Share | None = None
    advantages: Advantages | None = None
    rvpo_sharpness: Above0 | None = None
    risk: Cvar | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """What is not left to the section `training`."""
        return {key: value for key, value in self if value is not None}

    def instead_of(self, section: "Training") -> "Training":
        """Return the section `training` with what is stated here instead."""
        return section.model_copy(update=self.stated) if self.stated else section


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
    advantages: Advantages
    rvpo_sharpness: Above0 | None = (
        None  # k of `advantages: rvpo`; null: 1. The larger, the more the worst objective counts
    )
    risk: Cvar | None = None  # what takes the place of w.R; null: nothing does
    gradient_clip: Above0
    checkpoint_every: Positive


class OfMethod(NamedTuple):
    """A method's training, to be checked: its name, what its row and what the section `training` says."""

    name: str
    own: OwnTraining
    section: Training
    objectives: int

    @property
    def budget(self) -> Training:
        """What holds for the method."""
        return self.own.instead_of(self.section)

    def place(self, key: str) -> str:
        """Return where a setting stands: in the method's row, or in the section for all."""
        return f"methods.{self.name}.training.{key}" if key in self.own.stated else f"training.{key}"


def check_advantages(of: OfMethod, *, relabel: bool) -> None:
    """Raise `ValueError`, beginning with the key's path, when the settings of REINFORCE contradict each other."""
    budget, samples = of.budget, of.budget.samples_per_prompt
    if budget.advantages in PER_OBJECTIVE and budget.baseline != "leave_one_out":
        raise ValueError(
            "training.baseline: advantages per objective need leave_one_out; choose it, or other advantages"
        )
    if budget.advantages in PER_OBJECTIVE and budget.risk is not None:
        raise ValueError(
            f"{of.place('risk')}: takes the place of w.R, which advantages: {budget.advantages} has not; choose batch or none"
        )
    if samples < 2 and budget.baseline == "leave_one_out":
        raise ValueError(f"{of.place('samples_per_prompt')}: leave-one-out needs another sample; set it to 2 or more")
    if not relabel:
        return
    if budget.baseline != "leave_one_out":
        raise ValueError(f"training.baseline: methods.{of.name}.relabel needs leave_one_out; choose it")
    if budget.advantages in ("gdpo", "rvpo"):
        raise ValueError(
            f"{of.place('advantages')}: {budget.advantages} compares responses of one policy; choose others, or set "
            f"methods.{of.name}.relabel to false"
        )
    if of.objectives > 1 and rotations_of_samples(of.objectives, samples) == 1:
        raise ValueError(
            f"{of.place('samples_per_prompt')}: methods.{of.name}.relabel divides them among rotations of a weighting, two or "
            f"more each, which {samples} cannot be; set it to {2 * of.objectives}"
        )


def check_preferences(of: OfMethod, loss: Loss) -> None:
    """Raise `ValueError`, beginning with the key's path, when a loss of preferences has not what it compares."""
    where = f"methods.{of.name}.loss.kind"
    if of.budget.samples_per_prompt < 2:
        raise ValueError(
            f"{of.place('samples_per_prompt')}: {where}: {loss.kind} compares responses to a prompt; set it to 2 or more"
        )
    if of.section.alpha_high is not None:
        raise ValueError(
            f"training.alpha_high: {where}: {loss.kind} has no KL strength to condition on; set it to null"
        )
    if isinstance(loss, MiEpo) and of.objectives == 1:
        raise ValueError(f"{where}: {loss.kind} compares weightings, of which a single reward has one; use online_dpo")


def check_annealing(where: str, section: Training, start: float | None) -> None:
    """Raise `ValueError` for an `alpha_start` that does not lie above alpha, in the section or row at `where`."""
    if start is None:
        return
    if not 0 < section.alpha < start:
        raise ValueError(
            f"{where}.alpha_start: must be larger than training.alpha, and that larger than 0; null keeps alpha constant"
        )
    if section.alpha_high is not None:
        raise ValueError(
            f"{where}.alpha_start: a policy conditioned on alpha has no single one to start from; use null"
        )
