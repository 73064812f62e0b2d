"""Every point of every method as tables for the terminal, however narrow it is."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from clp_lightning.report.cells import LOOK, decimals, with_interval
from clp_lightning.report.labels import MONITOR_NAMES, weighting_label
from clp_lightning.store.queries import MONITORS

WIDE = 112  # columns in which rewards with intervals and monitors of two objectives fit side by side
INTERVAL, NUMBER = len("[-0.00,-0.00]"), len("-123.4")  # columns of the widest text of a cell that is not broken
CELL = len("-0.00 -0.00")  # of J and regret


def print_points(comparison: Mapping[str, Any], title: str, console: Console) -> None:
    """Print every point of every method; where one table does not fit the terminal, several, so that nothing is cut off.

    Needs `objectives` and `methods` of a comparison only.
    """
    methods = comparison["methods"]
    labels = [weighting_label(point["weighting"]) for method in methods for point in method["points"]]
    room = console.width - sum(
        max(map(len, column)) + 1 for column in ([m["method"] for m in methods] + ["method"], labels)
    )
    rewards = {name: max(len(name), INTERVAL) + 1 for name in comparison["objectives"]}
    monitors = {name: max(len(label), NUMBER) + 1 for name, label in MONITOR_NAMES.items()}
    together = rewards | monitors
    if console.width >= WIDE and sum(together.values()) <= room:
        tables = [(title, [*together])]
    else:
        tables = [(title, group) for group in _groups(rewards, room)]
        tables += [("Monitored, never optimized", group) for group in _groups(monitors, room)]
    for heading, names in tables:
        table = _points_table(comparison, heading, dict.fromkeys(names))
        if console.measure(table, options=console.options.update(width=10 * WIDE)).maximum > console.width:
            table = _points_table(comparison, heading, {name: together[name] - 1 for name in names})
        console.print(table)


def _groups(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Put columns side by side as long as there is room; at least one in each group."""
    groups: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not groups or width > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= width
    return groups


def _points_table(comparison: Mapping[str, Any], title: str, columns: Mapping[str, int | None]) -> Table:
    """A row per point, with these objectives and monitors; of a given width, a value's interval goes below it."""
    table = Table(title=title, **LOOK)
    table.add_column("method", no_wrap=True)
    table.add_column("w", justify="right", no_wrap=True)
    for name, width in columns.items():
        table.add_column(MONITOR_NAMES.get(name, name), justify="right", width=width)
    for method in comparison["methods"]:
        for i, point in enumerate(method["points"]):
            cells = [
                decimals(point["monitors"][name], 1 if name == "length" else 2)
                if name in MONITORS
                else with_interval(point["rewards"][name], point["intervals"][name])
                for name in columns
            ]
            table.add_row("" if i else method["method"], weighting_label(point["weighting"]), *cells)
        table.add_section()
    return table


def print_objective(measured: Mapping[str, Any], console: Console) -> None:
    """Print J of one policy: its mean, then J at each weighting, with KL beside it."""
    table = Table(title=f"J = (1 - alpha) w.R - alpha KL, alpha {measured['alpha']:g} [95 % interval]", **LOOK)
    for name in ("w", "J", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    interval = measured["mean_j_interval"]
    table.add_row(
        "mean", with_interval(measured["mean_j"], interval, 3), f"{measured['mean_kl']:z.2f}", end_section=True
    )
    for point in measured["by_weighting"]:
        j = with_interval(point["j"], point["interval"], 3)
        table.add_row(weighting_label(point["weighting"]), j, f"{point['kl']:z.2f}")
    console.print(table)


def print_by_weighting(comparison: Mapping[str, Any], console: Console) -> None:
    """Print J of every method at each weighting, with what the best method there has more; nothing where a run has no J."""
    methods = [method for method in comparison["methods"] if method["by_weighting"]]
    rows: dict[str, dict[str, str]] = {}
    for method in methods:
        for point in method["by_weighting"]:
            regret = "best" if point["regret"] < 0.005 else f"-{point['regret']:.2f}"
            rows.setdefault(weighting_label(point["weighting"]), {})[method["method"]] = (
                f"{point['j']:z.2f} {regret:>5}"
            )
    if not rows:
        return
    room = console.width - max(map(len, rows)) - 1
    for number, group in enumerate(_groups({m["method"]: max(len(m["method"]), CELL) + 1 for m in methods}, room)):
        table = Table(title="" if number else "J by weighting (minus: behind the best there)", **LOOK)
        table.add_column("w", justify="right", no_wrap=True)
        for name in group:
            table.add_column(name, justify="right", no_wrap=True)
        for label, cells in rows.items():
            table.add_row(label, *(cells.get(name, "–") for name in group))
        console.print(table)
