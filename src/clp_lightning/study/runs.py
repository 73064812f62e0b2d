"""From a study to its runs: each a whole parameter file, known by a hash of everything that decides its outcome."""

import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from ruamel.yaml import YAML

from clp_lightning.config.parameters import Config, check_values, load_config, read_values
from clp_lightning.config.recipes import DEFAULT, compose, recipes
from clp_lightning.errors import ClpError, UsageError, one_line
from clp_lightning.files import fingerprint
from clp_lightning.study.definition import Arm, DerivedArm, Study
from clp_lightning.study.table import Tables

OWN_RECIPE = "default"  # params.yaml itself
# What decides the corpus, the reference policy, the learned rewards and the normalization.
SHARED = ("seed", "data", "base", "compute", "layers", "generation", "sft", "reward_models", "rewards", "normalization")
# What changes no number of a run.
IDLE = {"training": ("seed", "checkpoint_every"), "evaluation": ("bootstrap_draws", "reference_point")}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation, or the evaluation alone: where it stands in the study, and its parameters."""

    study: str
    panel: str
    recipe: str
    arm: str
    method: str  # of the recipe's table, or its row in words
    seed: int
    budget: float
    split: str
    settings: str  # what the arm's training does otherwise than the recipe's, in words
    config: Config
    trained: "Run | None" = None  # of an arm that trains nothing: the run whose policy it decodes from

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """What there is one run of: study, panel, arm, budget, seed."""
        return self.study, self.panel, self.arm, self.budget, self.seed

    @property
    def name(self) -> str:
        """The run in words."""
        return f"{self.panel}/{self.arm} x{self.budget:g} seed {self.seed}"

    @property
    def rollouts(self) -> int:
        """Answers that the training drew from whose policy this run samples."""
        return self.config.training.steps * rollouts_per_step(self.config)

    @property
    def config_hash(self) -> str:
        """Hash of everything that decides the outcome but for the seed and the name of the arm."""
        values = self.config.model_dump()
        if self.trained is not None:
            return fingerprint(self.trained.config_hash, _stated(values["derived"][self.arm]["decoding"]))
        for section, keys in IDLE.items():
            values[section] = {key: value for key, value in values[section].items() if key not in keys}
        values = {key: value for key, value in values.items() if key != "promotion"}
        return fingerprint(_stated({**values, "methods": values["methods"][self.arm]}), self.split)

    @property
    def shared_hash(self) -> str:
        """Hash of the settings that the stages before the training read."""
        values = self.config.model_dump()
        return fingerprint(_stated({key: values[key] for key in SHARED}))


def rollouts_per_step(config: Config) -> int:
    """Return the answers that one optimizer step draws."""
    own = config.training
    return own.accumulate * own.devices * own.prompts_per_step * own.samples_per_prompt


def plan(
    name: str,
    study: Study,
    root: Path | str = ".",
    *,
    only: Mapping[str, Collection[Any]] | None = None,
) -> list[Run]:
    """Return the runs of a study: small budgets first, then seed by seed, so that comparisons are whole early.

    `only` keeps the runs whose panel, arm, budget or seed is listed under that name. Raises `UsageError` for names that the
    study does not have, and for values that params.yaml would not take, with the arm and the key.
    """
    panels = {panel: _panel(study, panel, Path(root)) for panel in study.panels}
    arms = {(at, arm): _arm(study, panel, at, arm) for at, panel in panels.items() for arm in study.arms_of(at)}
    cells = [
        (budget, seed, panel, arm)
        for panel in study.panels
        for arm in study.arms_of(panel)
        for budget in study.budgets_of(panel, arm)
        for seed in study.seeds
    ]
    order = [(panel, arm) for panel in study.panels for arm in study.arms_of(panel)]
    cells.sort(key=lambda cell: (cell[0], study.seeds.index(cell[1]), order.index(cell[2:])))
    for what, position in (("budget", 0), ("seed", 1), ("panel", 2), ("arm", 3)):
        if not (chosen := (only or {}).get(what)):
            continue
        known = list(dict.fromkeys(cell[position] for cell in cells))
        if lost := [value for value in chosen if value not in known]:
            raise UsageError(f"--{what} {lost[0]}: not in study {name}, which has {', '.join(map(str, known))}")
        cells = [cell for cell in cells if cell[position] in chosen]
    return [_run(name, study, panels[at][0], arms, at, arm, budget, seed) for budget, seed, at, arm in cells]


def outstanding(runs: Sequence[Run], tables: Tables, path: Path) -> list[Run]:
    """Return the runs that are not in the table; raises `ClpError` for one that is there with other settings."""
    todo = []
    for run in runs:
        row = tables.find(run.key)
        if row is None:
            todo.append(run)
        elif row["config"] != run.config_hash[:12]:
            raise ClpError(
                f"{path}: {run.name} of study {run.study} was run with other settings (config {row['config']}, now "
                f"{run.config_hash[:12]}); give the arm another name, or delete its rows"
            )
    return todo


def _panel(study: Study, panel: str, root: Path) -> tuple[Config, Any]:
    """Return a panel's configuration, and its values as OmegaConf has them."""
    recipe, where = study.panels[panel].recipe, f"panels.{panel}"
    if recipe == OWN_RECIPE and recipe not in recipes(root):
        load_config(root / DEFAULT)  # its problems are named with its own name
        values: Any = OmegaConf.create(read_values(root / DEFAULT))
    else:
        values = OmegaConf.create(YAML(typ="safe", pure=True).load(io.StringIO(compose(recipe, root)[1])))
    return _merged(values, study.panels[panel].settings, f"{where}.settings")


def _arm(study: Study, panel: tuple[Config, Any], at: str, arm: str) -> Config:
    """Return what an arm trains or decodes from: the panel's configuration with its one method, before budget and seed."""
    (_, values), given, where = panel, study.arms_of(at)[arm], f"arms.{arm}"
    derived = {arm: given.model_dump(include={"of", "decoding"})} if isinstance(given, DerivedArm) else {}
    of, row = (given.of, study.arms_of(at)[given.of]) if isinstance(given, DerivedArm) else (arm, given)
    assert isinstance(row, Arm)
    table = values["methods"]
    if isinstance(row.method, str) and row.method not in table:
        raise UsageError(
            f"{where}.method: recipe {study.panels[at].recipe} has no {row.method}; it has {', '.join(table)}"
        )
    method: Any = OmegaConf.to_container(table[row.method]) if isinstance(row.method, str) else dict(row.method)
    own = method.pop("training", None) or {}  # part of the run's settings, as the arm's own is
    alone: Any = OmegaConf.merge(values, {})
    alone["methods"], alone["derived"], alone["promotion"]["method"] = {of: method}, derived, of
    return _merged(alone, {"training": {**own, **row.training, "devices": 1}}, where)[0]


def _run(
    name: str,
    study: Study,
    recipe: Config,
    arms: Mapping[tuple[str, str], Config],
    at: str,
    arm: str,
    budget: float,
    seed: int,
) -> Run:
    """Return one run; its steps are what the budget pays for at the arm's own rollouts per step."""
    row, config = study.arms_of(at)[arm], arms[at, arm]
    if isinstance(row, DerivedArm):
        trained = _run(name, study, recipe, arms, at, row.of, budget, seed)
        return dataclasses.replace(
            trained,
            arm=arm,
            settings=" ".join(words(row.model_dump(include={"of", "decoding"}, exclude_none=True))),
            config=trained.config.model_copy(update={"derived": config.derived}),
            trained=trained,
        )
    training = config.training.model_copy(update={"seed": seed, "steps": _steps(recipe, config, row, arm, budget)})
    return Run(
        study=name,
        panel=at,
        recipe=study.panels[at].recipe,
        arm=arm,
        method=row.method if isinstance(row.method, str) else " ".join(words(row.method)),
        seed=seed,
        budget=budget,
        split=study.split,
        settings=" ".join(words(row.training)),
        config=config.model_copy(update={"training": training}),
    )


def _steps(recipe: Config, config: Config, row: Arm, arm: str, budget: float) -> int:
    """Return the optimizer steps whose rollouts come nearest to the budget; raises `UsageError` for less than one."""
    listed = config.methods[arm].listed(config.objectives)
    experts = len(config.objectives) if listed is None else len(listed)
    asked = (
        budget * recipe.training.steps * rollouts_per_step(recipe) * (experts if row.rollouts == "per_expert" else 1)
    )
    each = rollouts_per_step(config)
    if asked < each / 2:
        raise UsageError(
            f"budget {budget:g} of arm {arm}: {asked:g} rollouts are no step, which takes {each}; raise it"
        )
    return max(1, round(asked / each))


def _merged(values: Any, overlay: Mapping[str, Any], where: str) -> tuple[Config, Any]:
    """Merge an overlay and check the whole; raises `UsageError` that begins with `where`, a place in the study's file."""
    try:
        merged = OmegaConf.merge(values, OmegaConf.create(dict(overlay)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{where}: {error.full_key or ''}: {one_line(error)}; correct it there") from None
    assert isinstance(plain, dict)
    return check_values({str(key): value for key, value in plain.items()}, Path(where)), merged


def parameters(config: Config) -> str:
    """Return the text of a parameter file with this configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def words(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield nested settings as `key.key=value`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from words(value, f"{above}{key}.")
        else:
            shown = ";".join("+".join(words(each)) if isinstance(each, Mapping) else str(each) for each in value) if (
                isinstance(value, Sequence) and not isinstance(value, str)
            ) else value  # fmt: skip
            yield f"{above}{key}={shown}"


def _stated(values: Any) -> Any:
    """Leave out what is off (null, false, empty): a setting that did not exist yet when a run was made changes no hash."""
    if isinstance(values, Mapping):
        kept = {key: _stated(value) for key, value in values.items()}
        # A 0 goes too, since 0 == False. It has to: seed and evaluation.off_grid are 0 in rows that exist, whose hashes would
        # change. Nothing is hidden: where null means something else than 0, the setting refuses 0.
        return {key: value for key, value in kept.items() if value not in (None, False, {}, [])}
    if isinstance(values, list | tuple):
        return [_stated(value) for value in values]
    return values
