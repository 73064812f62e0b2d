"""Recipes: an overlay in conf/ says what differs from params.yaml, OmegaConf merges the two into one whole parameter file.

An overlay's keys are merged into the default's, section by section. Sections that it lists under `replace` are taken from
it alone: a section of another `kind`, or a table that shall hold nothing but the overlay's rows.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clp_lightning.config.parameters import Config, check_values, read_values
from clp_lightning.errors import UsageError, one_line

FOLDER, DEFAULT = Path("conf"), Path("params.yaml")
REPLACE = "replace"
HEAD = f"# {DEFAULT} with {FOLDER}/"  # how a composed file begins


def recipes(root: Path | str = ".") -> list[str]:
    """Return the names of the overlays of the project at `root`, sorted."""
    return sorted(path.stem for path in (Path(root) / FOLDER).glob("*.yaml"))


def compose(recipe: str, root: Path | str = ".") -> tuple[Config, str]:
    """Return a recipe's configuration and the text of its parameter file, which states every value.

    Raises `UsageError` with the overlay's file and the key for an unknown recipe, an unknown key or a wrong value.
    """
    root = Path(root)
    file = root / FOLDER / f"{recipe}.yaml"
    if recipe not in recipes(root):
        raise UsageError(f"recipe {recipe!r}: no such file {file}; recipes here: {', '.join(recipes(root)) or 'none'}")
    default = read_values(root / DEFAULT)
    check_values(default, root / DEFAULT)
    overlay = read_values(file)
    for section in _replaced(overlay, file):
        default[section] = {}
    try:
        merged = OmegaConf.merge(default, overlay)
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"{file}: {error.full_key or ''}: {one_line(error)}; correct it there") from None
    assert isinstance(merged, DictConfig) and isinstance(values, dict)
    config = check_values({str(key): value for key, value in values.items()}, file)
    head = f"{HEAD}{file.name} over it, written by `make repro RECIPE={recipe}`: change those two.\n"
    return config, head + OmegaConf.to_yaml(merged, resolve=True)


def _replaced(overlay: dict[str, object], file: Path) -> list[str]:
    """Take the list `replace` out of an overlay; each of its names must be a section that the overlay states."""
    names = overlay.pop(REPLACE, [])
    if not isinstance(names, list):
        raise UsageError(f"{file}: {REPLACE}: expected a list of sections, but found {names!r}")
    for name in names:
        if not isinstance(overlay.get(name), dict):
            raise UsageError(
                f"{file}: {REPLACE}: {name} is no section of this file; state it, or leave it out of the list"
            )
    return names
