"""Where the repository's files lie, and what its params.yaml says, for tests in any folder."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[1]

DEFAULT: dict[str, Any] = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")


def recipe_values(name: str) -> dict[str, Any]:
    """Return a recipe's parameters, composed."""
    from clp_lightning.config.recipes import compose  # OmegaConf, which a GPU's machine may lack

    return YAML(typ="safe", pure=True).load(compose(name, REPOSITORY)[1])
