"""The stages by name; each reads and writes the files that docs/design.md names, relative to the project folder.

A stage's module is imported when it runs: torch takes seconds, and `corpus` needs none.
"""

from importlib import import_module

from clp_lightning.config.parameters import Config
from clp_lightning.errors import UsageError
from clp_lightning.pipeline import records

# stage -> its module; the function has the stage's name
STAGES = {
    "corpus": "corpus",
    "base": "reference",
    "sft": "reference",
    "normalization": "normalization",
    "publish": "publish",
}
REWARD_STAGES = {"pairs": "reward_models", "reward_model": "reward_models"}
METHOD_STAGES = {"train": "train", "evaluate": "evaluate"}


def run(name: str, config: Config, method: str | None = None, reward: str | None = None) -> None:
    """Run one stage by name; some need a method, others a reward model.

    Raises `UsageError` for unknown names, and for one that the stage does not take.
    """
    modules = STAGES | REWARD_STAGES | METHOD_STAGES
    if name not in modules:
        raise UsageError(f"no stage {name!r}; stages: {', '.join(modules)}")
    for option, given, takers in (("method", method, METHOD_STAGES), ("reward", reward, REWARD_STAGES)):
        if given is not None and name not in takers:
            raise UsageError(f"stage {name} takes no --{option}; leave it out, or name one of {', '.join(takers)}")
    of: tuple[str, ...] = ()
    if name in REWARD_STAGES:
        if reward not in config.reward_models:
            known = ", ".join(config.reward_models) or "none: params.yaml has no reward_models"
            raise UsageError(f"stage {name} needs --reward; one of {known}")
        of = (reward,)
    if name in METHOD_STAGES:
        if method is None:
            raise UsageError(f"stage {name} needs --method; one of {', '.join(config.compared)}")
        of = (method,)
    stage = getattr(import_module(f"clp_lightning.pipeline.{modules[name]}"), name)
    with records.recorded("@".join((name, *of))):
        stage(config, *of)
