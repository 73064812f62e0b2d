"""The method table of `params.yaml`: what is trained, on which weightings, and what is only decoded differently."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from clp_lightning import weightings as simplex
from clp_lightning.config.training import (
    CustomLoss,
    Loss,
    MiEpo,
    OfMethod,
    OwnTraining,
    Training,
    check_advantages,
    check_annealing,
    check_preferences,
)
from clp_lightning.config.types import Name, Positive, Section, Share
from clp_lightning.errors import UsageError

REFERENCE = "reference"


class Dirichlet(Section):
    """Q: weightings from a symmetric Dirichlet distribution; concentration 1 is uniform."""

    kind: Literal["dirichlet"]
    concentration: Annotated[float, Field(gt=0)]
    antithetic: bool = (
        False  # whether each draw is used with every objective in every place, so that each has the same mean weight
    )


class Mixture(Section):
    """Q: a vertex with probability `corner_mass`, else from a symmetric Dirichlet distribution."""

    kind: Literal["mixture"]
    concentration: Annotated[float, Field(gt=0)]
    corner_mass: Share
    antithetic: bool = False


class Vertices(Section):
    """Q: one-hot weightings only (rewarded soups)."""

    kind: Literal["vertices"]


class SmoothedVertices(Section):
    """Q: one-hot weightings, as `vertices`, but expert i maximizes a smoothed mixture of the rewards instead of reward i.

    The mixture is row i of E[w w'] of Dirichlet(concentration), scaled to sum to 1: to first order what CLP's expert i
    learns from under that Dirichlet. Soups trained so tell what conditioning adds from what smoothing does.
    """

    kind: Literal["smoothed_vertices"]
    concentration: Annotated[float, Field(gt=0)]  # of the Dirichlet that is imitated; towards 0 these are the vertices


class Fixed(Section):
    """Q: one weighting (multi-objective RLHF, one model per weighting)."""

    kind: Literal["fixed"]
    weighting: dict[str, float]


class Listed(Section):
    """Q: the listed weightings in equal shares, with an expert for each instead of one per objective.

    That is multi-objective RLHF with one model per weighting, all of them trained at once within one budget.
    """

    kind: Literal["listed"]
    each: Annotated[list[dict[str, float]], Field(min_length=1)]


Distribution = Dirichlet | Mixture | Vertices | SmoothedVertices | Fixed | Listed


class Method(Section):
    """One row of the method table: what is conditioned on the weighting, and the distribution Q of weightings."""

    conditioning: Literal["full", "attention", "logits", "none"]  # the set S of layers with an expert per objective
    # theta_rest: one more expert, the same for all weightings, on every other linear layer; or "everywhere", beside the K too
    shared: bool | Literal["everywhere"]
    prompted: bool  # whether the weighting is also written into the prompt
    weightings: Annotated[Distribution, Field(discriminator="kind")]
    # whether a prompt's responses are drawn at every rotation of its weighting, and each is learned from at all of them
    relabel: bool = False
    # what a step minimizes; null: REINFORCE with a baseline, on (1 - alpha) w.R - alpha KL
    loss: Annotated[Loss, Field(discriminator="kind")] | None = None
    training: OwnTraining = Field(default_factory=OwnTraining)  # instead of the section's

    @model_validator(mode="after")
    def _trains_something(self) -> "Method":
        if self.conditioning == "none" and not self.shared:
            raise ValueError("conditioning: none without shared: true leaves nothing to train; set shared to true")
        if isinstance(self.weightings, Listed) and (self.conditioning == "none" or self.shared or self.prompted):
            raise ValueError(
                "weightings.kind: listed gives each weighting a model of its own; shared and prompted must be false"
            )
        if self.relabel and isinstance(self.weightings, Fixed | Listed):
            raise ValueError(
                f"relabel: weightings.kind: {self.weightings.kind} has no policy at the rotations of a weighting; set it to false"
            )
        if self.loss is not None:
            self._check_loss(self.loss)
        return self

    def _check_loss(self, loss: Loss) -> None:
        for key in ("advantages", "rvpo_sharpness", "risk"):
            if key in self.training.stated:
                raise ValueError(f"training.{key}: loss.kind: {loss.kind} does not read it; leave one of them out")
        if self.relabel and not isinstance(loss, CustomLoss):
            raise ValueError(f"relabel: loss.kind: {loss.kind} compares responses of one policy; set it to false")
        if isinstance(loss, MiEpo) and isinstance(self.weightings, Fixed | Listed):
            raise ValueError(
                f"loss.kind: mi_epo compares weightings, and weightings.kind: {self.weightings.kind} has no policy at others; "
                "use online_dpo"
            )

    def listed(self, objectives: Sequence[str]) -> np.ndarray | None:
        """Return the weightings [M, K] that have a model each, or None where there is an expert per objective."""
        if not isinstance(self.weightings, Listed):
            return None
        return simplex.to_rows(self.weightings.each, len(self.weightings.each), objectives)


class LogitMixing(Section):
    """Decode from the K experts' next-token log-probabilities, mixed with w (MOD, arXiv 2406.18853)."""

    kind: Literal["logit_mixing"]


class Dera(Section):
    """Decode from the mixed log-probabilities of the policy and its reference (DeRa, arXiv 2402.02992)."""

    kind: Literal["dera"]
    strength: Share  # share of the reference: 0 is the policy


class KlStrength(Section):
    """Sample from a policy conditioned on the KL strength at another one than `training.alpha`, where it is evaluated else."""

    kind: Literal["kl_strength"]
    alpha: Share  # between training.alpha and training.alpha_high: beyond them the policy was not trained


class BestOf(Section):
    """Draw several answers from the reference policy and keep the one with the largest w.R."""

    kind: Literal["best_of"]
    samples: Positive


class Merged(Section):
    """Merge the experts' updates, weighted with w, by TIES (arXiv 2306.01708) or DARE (arXiv 2311.03099)."""

    kind: Literal["merged"]
    operator: Literal["ties", "dare"]
    density: Annotated[float, Field(gt=0, le=1)]  # share of each update's entries that are kept


class Scaled(Section):
    """Steer with w times a factor: further from the reference policy than trained, or less far (ExPO, arXiv 2404.16792)."""

    kind: Literal["scaled"]
    factor: Annotated[float, Field(gt=0)]  # 1 is the policy as it was trained


class Derived(Section):
    """A method that trains nothing: another way to decode from a trained one."""

    of: Name
    decoding: Annotated[LogitMixing | Dera | KlStrength | BestOf | Merged | Scaled, Field(discriminator="kind")]


def check_methods(methods: Mapping[str, Method], derived: Mapping[str, Derived], objectives: Sequence[str]) -> None:
    """Raise `ValueError`, beginning with the key's path, when rows of the two tables contradict each other."""
    for key, table in (("methods", methods), ("derived", derived)):
        if REFERENCE in table:
            raise ValueError(f"{key}.{REFERENCE}: this name is kept for the reference policy; choose another")
    for name, method in methods.items():
        listed = method.weightings.each if isinstance(method.weightings, Listed) else []
        listed = [method.weightings.weighting] if isinstance(method.weightings, Fixed) else listed
        for weighting in listed:
            try:
                simplex.to_array(weighting, objectives)
            except UsageError as error:
                raise ValueError(f"methods.{name}.weightings: {error}") from None
    for name, row in derived.items():
        if name in methods:
            raise ValueError(f"derived.{name}: a trained method has this name already; choose another")
        if isinstance(row.decoding, BestOf):
            if row.of != REFERENCE:
                raise ValueError(f"derived.{name}.of: best_of draws from the reference policy; set it to {REFERENCE}")
        elif row.of not in methods:
            raise ValueError(f"derived.{name}.of: {row.of} is no trained method; one of {', '.join(methods)}")
        elif isinstance(row.decoding, LogitMixing | Merged):
            source = methods[row.of]
            if (
                source.conditioning == "none"
                or source.shared
                or source.prompted
                or isinstance(source.weightings, Listed)
            ):
                raise ValueError(
                    f"derived.{name}.of: needs experts that stand alone, one per objective; {row.of} has none"
                )


def check_training(name: str, row: Method, section: Training, objectives: int) -> None:
    """Raise `ValueError`, beginning with the key's path, when a row and the section `training` contradict each other."""
    of = OfMethod(name, row.training, section, objectives)
    if row.loss is None:
        check_advantages(of, relabel=row.relabel)
    elif not isinstance(row.loss, CustomLoss):
        check_preferences(of, row.loss)
    check_annealing(f"methods.{name}.training", section, row.training.alpha_start)
