"""Errors of use: one line that names what is wrong, where, and what to do."""


class ClpError(Exception):
    """A failure that the user can act on; the command prints its one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(ClpError):
    """Wrong arguments or configuration (exit code 2)."""

    exit_code = 2
