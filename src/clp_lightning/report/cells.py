"""How numbers stand in the cells of the terminal's tables."""

from collections.abc import Mapping, Sequence
from typing import Any

LOOK: dict[str, Any] = {"box": None, "title_justify": "left", "header_style": "bold", "padding": (0, 1, 0, 0)}


def share(value: Mapping[str, Any]) -> str:
    """A share with its interval, in percent."""
    low, high = value["interval"]
    return f"{value['value']:.0%} [{low * 100:.0f},{high * 100:.0f}]"


def with_interval(value: float, interval: Sequence[float] | None, digits: int = 2) -> str:
    """A value with its interval."""
    if interval is None:
        return f"{value:.{digits}f}"
    low, high = interval
    zero = f"{0:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f},{high:.{digits}f}]".replace(f"-{zero}", zero)


def measured(metric: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A metric of `comparison` with its interval; a dash where a run has none."""
    return "–" if metric is None else with_interval(metric["value"], metric["interval"], digits)


def decimals(value: float | None, digits: int) -> str:
    """A number with so many digits after the point."""
    return "–" if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number; millions as such."""
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """A time, in minutes where that reads better."""
    return "–" if value is None else f"{value / 60:.1f} min" if value >= 90 else f"{value:.0f} s"
