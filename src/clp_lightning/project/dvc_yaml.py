"""dvc.yaml made to fit a parameter file: which results, learned rewards and own files each stage reads."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from clp_lightning.config.data import Corruptions, Pretrained, Table
from clp_lightning.config.parameters import Config
from clp_lightning.config.rewards import PythonReward
from clp_lightning.config.training import CustomLoss
from clp_lightning.files import atomic

SCORING = ("normalization", "train", "evaluate", "evaluate_derived", "evaluate_reference")
CODE = "src/"


def write_pipeline(source: Path, target: Path, config: Config, *, code: bool = True) -> None:
    """Copy the pipeline `source` to `target`, adapted; without `code`, stages do not depend on this package's modules."""
    pipeline = YAML(typ="safe", pure=True).load(source)
    if adapt(pipeline, config, target.parent, code=code):
        with atomic(target) as beside, beside.open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(pipeline, stream)
    else:
        write_text(target, source.read_text(encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write a file, unless it has this text already: its time then stays as it is."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as beside:
            beside.write_text(text, encoding="utf-8")


def adapt(pipeline: dict[str, Any], config: Config, folder: Path, *, code: bool = True) -> bool:
    """Make a pipeline's stages read what this configuration names; returns whether that changed anything.

    DVC cannot template a list of dependencies: the last stage reads the results of every method, those that score read every
    learned reward and the user's own files in `folder`.
    """
    changed = False
    for name, stage in pipeline["stages"].items():
        definition = stage.get("do", stage)
        before = definition.get("deps", [])
        stay = [dep for dep in before if not _varies(dep, name) and (code or not dep.startswith(CODE))]
        after = stay + _inputs(name, config, folder)
        if sorted(after) != sorted(before):
            definition["deps"], changed = after, True
    return changed


def own_files(config: Config, folder: Path) -> list[str]:
    """Return the user's own files and folders in `folder` that the configuration names: data, models, rewards."""
    found = [name for stage in ("corpus", "base", "pairs", "train") for name in _inputs(stage, config, folder)]
    return [name for name in dict.fromkeys(found) if name.removeprefix("models/") not in config.reward_models]


def _varies(dep: str, stage: str) -> bool:
    if "${" in dep or dep in ("models/base", "models/reference"):
        return False
    return dep.startswith("models/") or (stage == "publish" and dep.startswith("results/"))


def _inputs(stage: str, config: Config, folder: Path) -> list[str]:
    """Return what a stage reads because of the configuration: learned rewards, results, and own files that are there."""
    own: list[str | None] = []
    if stage == "corpus" and isinstance(config.data, Table):
        own = [config.data.source]
    elif stage == "base" and isinstance(config.base, Pretrained):
        own = [config.base.model]
    elif stage == "pairs":
        own = [each.pairs.source for each in config.reward_models.values() if not isinstance(each.pairs, Corruptions)]
    elif stage == "publish":
        return [f"results/{method}" for method in config.compared]
    elif stage in SCORING:
        learned = [f"models/{name}" for name in config.reward_models]
        own = [_file_of(reward) for reward in config.rewards.values()]
        own += [
            _module(row.loss)
            for row in config.methods.values()
            if stage == "train" and isinstance(row.loss, CustomLoss)
        ]
        return learned + _there(own, folder, learned)
    return _there(own, folder, [])


def _file_of(reward: Any) -> str | None:
    """Return the file or folder of the project that a reward reads, if it reads one."""
    if reward.kind == "python":
        return _module(reward)
    return getattr(reward, "model", None) or getattr(reward, "encoder", None)


def _module(section: PythonReward | CustomLoss) -> str:
    return section.function.split(":")[0].replace(".", "/") + ".py"


def _there(own: Iterable[str | None], folder: Path, known: Sequence[str]) -> list[str]:
    found = [name for name in own if name and name not in known and (folder / name).exists()]
    return list(dict.fromkeys(found))
