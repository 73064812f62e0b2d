"""The table `derived` of `params.yaml`: methods that train nothing and only decode otherwise from a trained one."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clp_lightning.config.types import Name, Positive, Section, Share


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
    """Merge the experts' updates, weighted with w, by an operator instead of the average.

    TIES (arXiv 2306.01708), DARE (arXiv 2311.03099), DELLA (arXiv 2406.11617), Breadcrumbs (arXiv 2312.06795), RAM and RAM+
    (arXiv 2601.13572). Each states its own settings and no others.
    """

    kind: Literal["merged"]
    operator: Literal["ties", "dare", "della", "breadcrumbs", "ram", "ram_plus"]
    # ties, dare, della, breadcrumbs: share of each update's entries that are kept
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    # della: how much likelier a row's largest entry is kept than its smallest; 0 is dare
    window: Share | None = None
    # breadcrumbs: share of each update's entries, the largest, that are dropped before density counts the next largest
    outliers: Share | None = None
    # ram, ram_plus: an expert is active at an entry where its update is larger than this; published with 1e-5, of updates that
    # are sparse, which those of low-rank experts are not
    epsilon: Annotated[float, Field(ge=0)] | None = None
    # ram_plus: entries of one active expert are scaled by 1 + gain * min(rho, cap) between the vertices; published with 0.1
    gain: Annotated[float, Field(ge=0)] | None = None
    # ram_plus: bound on rho, the entries that an expert shares over those where it alone is active; published with 0.2
    cap: Annotated[float, Field(ge=0)] | None = None

    @property
    def settings(self) -> dict[str, float]:
        """The operator's settings, by name."""
        return self.model_dump(exclude={"kind", "operator"}, exclude_none=True)

    @model_validator(mode="after")
    def _has_its_settings(self) -> "Merged":
        needed = SETTINGS[self.operator]
        if unknown := [key for key in self.settings if key not in needed]:
            raise ValueError(f"{unknown[0]}: {self.operator} has none; remove it (it has {', '.join(needed)})")
        if missing := [key for key in needed if key not in self.settings]:
            raise ValueError(f"{missing[0]}: missing; {self.operator} needs {', '.join(needed)}")
        density, spread, outliers = (
            self.density or 1.0,
            (self.window or 0) / 2,
            self.outliers or 0,
        )  # 1, 0, 0: none of them
        if density - spread <= 0 or density + spread > 1:
            raise ValueError(
                f"window: entries would be kept with a probability of {density - spread:g} to {density + spread:g} (density - "
                "and + half of it), which is none; make it smaller"
            )
        if density + outliers > 1:
            raise ValueError(f"outliers: density {density:g} leaves {1 - density:g} to drop; make one of them smaller")
        return self


_DENSITY = ("density",)
SETTINGS = {
    "ties": _DENSITY, "dare": _DENSITY, "della": (*_DENSITY, "window"), "breadcrumbs": (*_DENSITY, "outliers"),
    "ram": ("epsilon",), "ram_plus": ("epsilon", "gain", "cap"),
}  # fmt: skip


class BoneSoups(Section):
    """Steer `backbones` with the coefficients c that solve M'c = w, over 1 - extrapolation (Bone Soups, arXiv 2502.10762)."""

    kind: Literal["bone_soups"]
    # e: the combination is divided by 1 - e, further from the reference policy; chosen on validation prompts (docs/arena.md)
    extrapolation: Annotated[float, Field(ge=0, le=0.5)]


class Scaled(Section):
    """Steer with w times a factor: further from the reference policy than trained, or less far (ExPO, arXiv 2404.16792)."""

    kind: Literal["scaled"]
    factor: Annotated[float, Field(gt=0)]  # 1 is the policy as it was trained


class Derived(Section):
    """A method that trains nothing: another way to decode from a trained one."""

    of: Name
    decoding: Annotated[
        LogitMixing | Dera | KlStrength | BestOf | Merged | Scaled | BoneSoups, Field(discriminator="kind")
    ]
