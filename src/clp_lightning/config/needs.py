"""What a configuration needs of the data that it names: reference answers, for `sft` and for rewards that read them.

The stages ask before they load a model, and `clp data` asks the same before anything runs.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from clp_lightning.config.parameters import Config
from clp_lightning.config.rewards import AnyReward, HttpReward, JudgeReward, PythonReward, RougeReward, SimilarityReward
from clp_lightning.errors import UsageError, plural


def check_sft(config: Config, references: Iterable[str | None]) -> None:
    """Raise `UsageError` when there is supervised finetuning and none of the training rows has a reference answer."""
    if config.sft is not None and not any(reference is not None for reference in references):
        raise UsageError("sft: the data has no reference answers; name data.reference, or set sft to null")


def check_rewards(config: Config, rows: Iterable[tuple[str, str | None]], root: Path) -> None:
    """Raise `UsageError` for the first reward that reads a reference answer which a row (document, reference) lacks.

    Rows are those that rewards are computed on: of the splits train and test. `root` is the project's folder.
    """
    readers = [name for name, reward in config.rewards.items() if _reads_reference(reward, root)]
    if not readers:
        return
    documents = [(document, reference) for document, reference in rows]
    lacking = [document for document, reference in documents if reference is None]
    if lacking:
        raise UsageError(
            f"rewards.{readers[0]}: reads the reference answer, and {len(lacking)} of {plural(len(documents), 'row')} have "
            f"none, {lacking[0][:60]!r} first; name data.reference, or take another reward"
        )


def _reads_reference(reward: AnyReward, root: Path) -> bool:
    match reward:
        case RougeReward() | JudgeReward():
            return True
        case SimilarityReward():
            return reward.to == "reference"
        case HttpReward():
            return reward.references
        case PythonReward():
            return _takes_references(reward.function, root)
    return False


def _takes_references(function: str, root: Path) -> bool:
    """Whether a function of the project has a parameter `references`, as far as its file tells without being run."""
    module, _, name = function.partition(":")
    file = root / f"{module.replace('.', '/')}.py"
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # the stage says what is wrong with it
        return False
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            return any(argument.arg == "references" for argument in arguments)
    return False
