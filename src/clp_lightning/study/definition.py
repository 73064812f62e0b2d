"""The file of a study (`conf/studies/NAME.yaml`): which methods are trained, on which recipes, with which seeds and budgets."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from clp_lightning.config.derived import BestOf, Derived
from clp_lightning.config.parameters import read_values
from clp_lightning.config.types import Name, Section, first_problem
from clp_lightning.errors import UsageError

FOLDER = Path("conf/studies")
FOLLOWS = {"seed": "list it in seeds", "steps": "they follow from budgets", "devices": "a run is one process"}

Budget = Annotated[float, Field(gt=0)]  # multiples of the recipe's rollouts


class Arm(Section):
    """One line of the picture: a method, and what its training does otherwise than the recipe's."""

    method: Name | dict[str, Any]  # of the recipe's table, or a whole row of one
    training: dict[str, Any] = Field(
        default_factory=dict
    )  # keys of params.yaml's section, e.g. learning_rate or gradient_clip
    rollouts: Literal["total", "per_expert"] = "total"  # per_expert: a budget is what every expert gets
    budgets: Annotated[list[Budget], Field(min_length=1)] | None = None  # instead of the study's

    @field_validator("training")
    @classmethod
    def _follows(cls, training: dict[str, Any]) -> dict[str, Any]:
        for key in FOLLOWS.keys() & training.keys():
            raise ValueError(f"training.{key} of an arm: {FOLLOWS[key]}; remove it")
        return training


class DerivedArm(Derived):
    """A line of the picture that trains nothing: another way to decode from the policies of the arm `of`."""

    budgets: Annotated[list[Budget], Field(min_length=1)] | None = None  # of the trained arm's; all of them by default


def _kind(arm: Any) -> str:
    return "derived" if isinstance(arm, DerivedArm) or (isinstance(arm, dict) and "of" in arm) else "trained"


AnyArm = Annotated[Annotated[Arm, Tag("trained")] | Annotated[DerivedArm, Tag("derived")], Discriminator(_kind)]


class Panel(Section):
    """One recipe: a panel of the picture, within which runs are compared."""

    recipe: Name  # conf/RECIPE.yaml; default: params.yaml itself
    settings: dict[str, Any] = Field(default_factory=dict)  # merged over the recipe, like a recipe over params.yaml
    arms: dict[Name, AnyArm] = Field(
        default_factory=dict
    )  # of this panel only, or in place of the study's arm of that name


class Study(Section):
    """The whole file."""

    question: Annotated[str, Field(min_length=1)]  # what the study decides; it goes into the ledger
    split: Literal["validation", "test"]  # settings are chosen on validation, and test is for what is reported
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]  # of training
    budgets: Annotated[list[Budget], Field(min_length=1)]
    panels: Annotated[dict[Name, Panel], Field(min_length=1)]
    arms: dict[Name, AnyArm]  # of every panel; the first is compared with the others

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        lists: list[tuple[str, Sequence[float]]] = [("seeds", self.seeds), ("budgets", self.budgets)]
        lists += [(f"arms.{name}.budgets", arm.budgets or []) for name, arm in self.arms.items()]
        lists += [
            (f"panels.{panel}.arms.{name}.budgets", arm.budgets or [])
            for panel, each in self.panels.items() for name, arm in each.arms.items()
        ]  # fmt: skip
        for key, values in lists:
            if twice := [value for value, times in Counter(values).items() if times > 1]:
                raise ValueError(f"{key}: {twice[0]:g} is there twice; name each once")
        for name in self.panels:
            if not self.arms_of(name):
                raise ValueError(f"panels.{name}: no arm; name some under arms")
            self._check_derived(name)
        return self

    def _check_derived(self, panel: str) -> None:
        arms = self.arms_of(panel)
        trained = {name: arm for name, arm in arms.items() if isinstance(arm, Arm)}
        for name, arm in arms.items():
            if isinstance(arm, Arm):
                continue
            where = f"panels.{panel}.arms.{name}" if name in self.panels[panel].arms else f"arms.{name}"
            if isinstance(arm.decoding, BestOf):
                raise ValueError(
                    f"{where}.decoding: best_of draws from the reference policy, not from a trained arm; take another kind"
                )
            if arm.of not in trained:
                known = ", ".join(trained) or "none"
                raise ValueError(f"{where}.of: {arm.of} is no trained arm of panel {panel}; trained are {known}")
            budgets = trained[arm.of].budgets or self.budgets
            if lost := [budget for budget in arm.budgets or [] if budget not in budgets]:
                raise ValueError(
                    f"{where}.budgets: arm {arm.of} has no runs of {lost[0]:g}; remove it, or add it there"
                )

    def arms_of(self, panel: str) -> dict[str, Arm | DerivedArm]:
        """Return the arms of a panel: the study's and its own, which take the place of those with the same name."""
        return {**self.arms, **self.panels[panel].arms}

    def budgets_of(self, panel: str, arm: str) -> list[float]:
        """Return the budgets of an arm: its own, those of the arm it is derived from, or the study's."""
        row = self.arms_of(panel)[arm]
        of = self.arms_of(panel)[row.of].budgets if isinstance(row, DerivedArm) else None
        return row.budgets or of or self.budgets


def studies(root: Path | str = ".") -> list[str]:
    """Return the names of the studies of the project at `root`, sorted."""
    return sorted(path.stem for path in (Path(root) / FOLDER).glob("*.yaml"))


def load_study(name: str, root: Path | str = ".") -> tuple[str, Study]:
    """Read a study by its name (`conf/studies/NAME.yaml`) or by the path of its YAML file; return its name and the study.

    Raises `UsageError` with the file and the key for what is missing, unknown or has a wrong value.
    """
    file = Path(root) / (name if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml")
    if not file.is_file():
        raise UsageError(f"study {name!r}: no such file {file}; studies here: {', '.join(studies(root)) or 'none'}")
    values = read_values(file)
    try:
        return file.stem, Study.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, values).replace("every key of params.yaml must be stated", "state it")
        raise UsageError(f"{file}: {problem}") from None


def questions(root: Path | str = ".") -> dict[str, str]:
    """Return what each study of the project decides, in its own words; one whose file is wrong is left out."""
    found = {}
    for name in studies(root):
        with contextlib.suppress(UsageError):
            found[name] = " ".join(load_study(name, root)[1].question.split())
    return found
