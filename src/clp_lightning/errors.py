"""Errors of use: one line that names what is wrong, where, and what to do; and what several of those lines say alike."""

import re
from pathlib import Path

# Targets of the repository's Makefile, and what does the same in a project without one (`clp init`, a recipe's workspace).
INSTEAD = {"repro": "dvc repro", "pull": "dvc pull"}


class ClpError(Exception):
    """A failure that the user can act on; the command prints its one line and exits with `exit_code`."""

    exit_code = 1


def one_line(error: object, most: int = 200) -> str:
    """Return what another library's error or answer says, on one line of at most `most` characters."""
    text = " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")
    return text if len(text) <= most else text[: most - 1] + "…"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a number with its noun: `1 row`, `2 rows`; `nouns` is a plural that is no `s` behind the noun."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def make(target: str, otherwise: str | None = None, folder: Path | str = ".") -> str:
    """Return the command, in backticks, that does in this folder what `make TARGET` does in a checkout.

    That is `make TARGET` where a Makefile has the target; elsewhere `otherwise`, by default DVC's own command.
    """
    return f"`make {target}`" if has_target(target, folder) else f"`{otherwise or INSTEAD[target]}`"


def has_target(target: str, folder: Path | str = ".") -> bool:
    """Whether the folder has a Makefile with this target."""
    for name in ("GNUmakefile", "makefile", "Makefile"):  # make's own order; it reads the first only
        try:
            text = (Path(folder) / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        return re.search(rf"^{re.escape(target)}[ \t]*:(?!=)", text, re.MULTILINE) is not None
    return False


class UsageError(ClpError):
    """Wrong arguments or configuration (exit code 2)."""

    exit_code = 2
