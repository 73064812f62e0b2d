"""The method table of `params.yaml`: what is trained, and on which weightings."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from clp_lightning import weightings as simplex
from clp_lightning.config.derived import BestOf, BoneSoups, Derived, LogitMixing, Merged
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
from clp_lightning.config.types import Section, Share
from clp_lightning.errors import UsageError, plural

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


class MixedVertices(Section):
    """Q: one-hot weightings, as `vertices`, but expert i maximizes a mixture of the rewards instead of reward i."""

    def mixtures(self, objectives: int) -> np.ndarray:
        """Return M [K, K], invertible, whose rows sum to 1: row i is the weighting that expert i's rewards are summed with."""
        raise NotImplementedError


class SmoothedVertices(MixedVertices):
    """Q: one-hot weightings, as `vertices`, but expert i maximizes a smoothed mixture of the rewards instead of reward i.

    The mixture is row i of E[w w'] of Dirichlet(concentration), scaled to sum to 1: to first order what CLP's expert i
    learns from under that Dirichlet. Soups trained so tell what conditioning adds from what smoothing does.
    """

    kind: Literal["smoothed_vertices"]
    concentration: Annotated[float, Field(gt=0)]  # of the Dirichlet that is imitated; towards 0 these are the vertices

    def mixtures(self, objectives: int) -> np.ndarray:
        """Return M [K, K]: c + 1 in its diagonal and c elsewhere, over K c + 1."""
        return simplex.smoothed_vertices(objectives, concentration=self.concentration)


class Backbones(MixedVertices):
    """Q: one-hot weightings, as `vertices`, but expert i maximizes `beta` of reward i and an equal share of each other one.

    These are the backbone models of Bone Soups (arXiv 2502.10762); `derived` of the kind `bone_soups` steers them.
    """

    kind: Literal["backbones"]
    beta: Annotated[float, Field(gt=0, le=1)]  # more than 1 / K; published with 0.6 to 0.8, and 1 is `vertices`

    def mixtures(self, objectives: int) -> np.ndarray:
        """Return M [K, K]: beta in its diagonal and (1 - beta) / (K - 1) elsewhere, for beta > 1 / K."""
        return simplex.backbones(objectives, beta=self.beta)


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


Distribution = Dirichlet | Mixture | Vertices | SmoothedVertices | Backbones | Fixed | Listed


# what a conditioned layer has: an expert per objective, or one update with w in a core (PARM) or as singular values (Panacea)
Parameterization = Literal["experts", "bilinear", "singular"]


class Method(Section):
    """One row of the method table: what is conditioned on the weighting, and the distribution Q of weightings."""

    conditioning: Literal["full", "attention", "logits", "none"]  # the set S of layers with an expert per objective
    parameterization: Parameterization | None = None  # null: experts
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

    @model_validator(mode="after")
    def _has_what_its_parameterization_needs(self) -> "Method":
        kind = self.parameterization or "experts"
        if kind == "experts":
            return self
        if self.conditioning == "none":
            raise ValueError(
                f"parameterization: {kind} is of conditioned layers, and conditioning: none has none; set it to experts"
            )
        if self.shared == "everywhere":
            raise ValueError(
                f"shared: parameterization: {kind} has a part that all weightings share; set it to true or false"
            )
        if isinstance(self.weightings, Listed | MixedVertices):
            raise ValueError(
                f"parameterization: weightings.kind: {self.weightings.kind} trains experts that stand alone, which {kind} has "
                "not; set it to experts"
            )
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


def rank_problem(parameterization: Parameterization, rank: int | Literal["full"]) -> str | None:
    """Return why an update of that parameterization cannot have that rank, and what to do, or None."""
    if parameterization != "experts" and rank == "full":
        return f"{parameterization} is low-rank; set the rank to a number, or the parameterization to experts"
    if parameterization == "bilinear" and rank != "full" and rank % 2:
        return "bilinear is two terms of half the rank each; set the rank to an even number"
    return None


def check_methods(
    methods: Mapping[str, Method],
    derived: Mapping[str, Derived],
    objectives: Sequence[str],
    rank: int | Literal["full"],
) -> None:
    """Raise `ValueError`, beginning with the key's path, when rows of the two tables contradict each other."""
    for key, table in (("methods", methods), ("derived", derived)):
        if REFERENCE in table:
            raise ValueError(f"{key}.{REFERENCE}: this name is kept for the reference policy; choose another")
    for name, method in methods.items():
        if problem := rank_problem(method.parameterization or "experts", rank):
            raise ValueError(f"methods.{name}.parameterization: with training.rank {rank}: {problem}")
        listed = method.weightings.each if isinstance(method.weightings, Listed) else []
        listed = [method.weightings.weighting] if isinstance(method.weightings, Fixed) else listed
        for weighting in listed:
            try:
                simplex.to_array(weighting, objectives)
            except UsageError as error:
                raise ValueError(f"methods.{name}.weightings: {error}") from None
        if isinstance(method.weightings, Backbones) and method.weightings.beta * len(objectives) <= 1:
            raise ValueError(
                f"methods.{name}.weightings.beta: {method.weightings.beta:g} is no more than an equal share of "
                f"{plural(len(objectives), 'objective')}, so that no expert is its own objective's; 0.7 is usual for two"
            )
    for name, row in derived.items():
        if name in methods:
            raise ValueError(f"derived.{name}: a trained method has this name already; choose another")
        if isinstance(row.decoding, BestOf):
            if row.of != REFERENCE:
                raise ValueError(f"derived.{name}.of: best_of draws from the reference policy; set it to {REFERENCE}")
        elif row.of not in methods:
            raise ValueError(f"derived.{name}.of: {row.of} is no trained method; one of {', '.join(methods)}")
        elif isinstance(row.decoding, LogitMixing | Merged | BoneSoups):
            source = methods[row.of]
            if (
                source.conditioning == "none"
                or source.shared
                or source.prompted
                or isinstance(source.weightings, Listed)
                or source.parameterization not in (None, "experts")
            ):
                raise ValueError(
                    f"derived.{name}.of: needs experts that stand alone, one per objective; {row.of} has none"
                )
            if isinstance(row.decoding, BoneSoups) and not isinstance(source.weightings, MixedVertices):
                raise ValueError(
                    f"derived.{name}.of: bone_soups needs a method with weightings.kind: backbones; {row.of} has "
                    f"{source.weightings.kind}"
                )


def check_training(name: str, row: Method, section: Training, objectives: int) -> None:
    """Raise `ValueError`, beginning with the key's path, when a row and the section `training` contradict each other."""
    of = OfMethod(name, row.training, section, objectives)
    if row.loss is None:
        check_advantages(of, relabel=row.relabel)
    elif not isinstance(row.loss, CustomLoss):
        check_preferences(of, row.loss)
    check_annealing(f"methods.{name}.training", section, row.training.alpha_start)
