"""The frontier as one picture that needs no explanation (matplotlib, loaded only here)."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clp_lightning.files import atomic
from clp_lightning.report.cells import with_interval
from clp_lightning.report.labels import method_styles, weighting_label
from clp_lightning.store.queries import REFERENCE

MARKERS = {"star": "*", "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v",
           "x": "X", "cross": "P", "hexagon": "h", "triangle-left": "<", "triangle-right": ">", "diamond-tall": "d",
           "pentagon": "p"}  # fmt: skip
INK, FAINT = "#1F2933", "#7B8794"


def picture(comparison: Mapping[str, Any], path: Path | str) -> None:
    """Draw the frontiers into a PNG or SVG file, by the name's ending, atomically.

    Two objectives make one panel with a line per method; three or more one panel per pair of the first three, without
    lines; one objective a row per method.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path, objectives = Path(path), comparison["objectives"]
    pairs: list[tuple[str, str | None]] = list(itertools.combinations(objectives[:3], 2)) or [(objectives[0], None)]
    methods = [method["method"] for method in comparison["methods"]]
    height = 5.6 + 0.24 * len(methods)
    figure = Figure(figsize=(8.4 if len(pairs) == 1 else 5.2 * len(pairs), height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for panel, pair in zip(panels, pairs, strict=True):
        _draw(panel, comparison, pair, connected=len(objectives) <= 2)

    names = " against ".join(objectives) if len(objectives) <= 2 else ", ".join(objectives)
    head, foot = 1 - 0.62 / height, (0.34 + 0.22 * len(methods)) / height
    figure.text(0.02, 1 - 0.12 / height, f"Frontier: {names}", va="top", fontsize=15, fontweight="bold", color=INK)
    about = f"{comparison['prompts']} unseen prompts, bars are 95 % intervals."
    about += f" Labels give w = {' : '.join(objectives)}." if len(objectives) == 2 else ""
    figure.text(0.02, 1 - 0.42 / height, about, va="top", fontsize=9, color=FAINT)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0.24 / height), frameon=False, fontsize=9.5,
                  labelcolor=INK, borderaxespad=0, handletextpad=0.6)  # fmt: skip
    point = ", ".join(f"{value:g}" for value in comparison["reference_point"].values())
    note = (
        f"J: what training maximizes. Hypervolume above ({point}). Intervals cover prompts and groups, not trainings."
    )
    figure.text(0.02, 0.08 / height, note, va="bottom", fontsize=8, color=FAINT)
    figure.tight_layout(rect=(0.005, foot, 0.995, head), w_pad=2)
    kind = path.suffix.lstrip(".").lower() or "png"
    with atomic(path) as beside:
        figure.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _draw(panel: Any, comparison: Mapping[str, Any], pair: tuple[str, str | None], *, connected: bool) -> None:
    horizontal, vertical = pair
    styles = method_styles(method["method"] for method in comparison["methods"])
    for method in comparison["methods"]:
        name, points = method["method"], method["points"]
        colour, marker = styles[name]
        x, x_error = _values(points, horizontal)
        y, y_error = _values(points, vertical) if vertical else ([float(-list(styles).index(name))] * len(points), None)
        volume = f"hypervolume {with_interval(method['hypervolume'], method['hypervolume_interval'])}"
        j = "" if method["mean_j"] is None else f"mean J {with_interval(method['mean_j'], method['mean_j_interval'])}, "
        kl = "" if method["mean_kl"] is None else f"KL {method['mean_kl']:.1f}, "
        panel.errorbar(
            x, y, xerr=x_error, yerr=y_error, color=colour, marker=MARKERS[marker], markeredgecolor="white",
            markeredgewidth=0.7, markersize=15 if name == REFERENCE else 7.5, linewidth=1.8,
            linestyle="-" if connected and len(points) > 1 else "none", ecolor=(colour, 0.38), elinewidth=1.1,
            zorder=4 if name == REFERENCE else 3, label=f"{name}: {j}{kl}{volume}",
        )  # fmt: skip
        if connected and vertical:
            for i in {0, len(points) - 1} if points[0]["weighting"] else set():
                panel.annotate(  # between the two bars of the point, on the side that no dominated point is on
                    weighting_label(points[i]["weighting"]), (x[i], y[i]), xytext=(6, 6), zorder=5,
                    textcoords="offset points", color=colour, fontsize=9, fontweight="bold",
                )  # fmt: skip
    panel.set_xlabel(f"{horizontal} (standardized; higher is better)", color=INK)
    if vertical:
        panel.set_ylabel(f"{vertical} (standardized; higher is better)", color=INK)
    else:
        panel.set_yticks([-i for i in range(len(styles))], list(styles))
    panel.margins(0.09)
    plain(panel)


def plain(axes: Any) -> None:
    """Give axes the house's look: a pale grid behind, no ticks, a line at the left and at the bottom alone."""
    axes.grid(color="#E4E7EB", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#CBD2D9")


def _values(points: list[dict[str, Any]], objective: str) -> tuple[list[float], list[list[float]]]:
    values = [point["rewards"][objective] for point in points]
    bounds = [point["intervals"][objective] for point in points]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]
    return values, [below, above]
