"""Errors of use: one line that names what is wrong, where, and what to do."""


class ClpError(Exception):
    """A failure that the user can act on; the command prints its one line and exits with `exit_code`."""

    exit_code = 1


def one_line(error: object, most: int = 200) -> str:
    """Return what another library's error or answer says, on one line of at most `most` characters."""
    text = " ".join(str(error).split()) or (type(error).__name__ if isinstance(error, BaseException) else "")
    return text if len(text) <= most else text[: most - 1] + "…"


class UsageError(ClpError):
    """Wrong arguments or configuration (exit code 2)."""

    exit_code = 2
