"""The study as one picture: mean J against rollouts, a line with its interval per arm, a panel per recipe (matplotlib)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clp_lightning.files import atomic
from clp_lightning.report.labels import method_styles
from clp_lightning.report.picture import FAINT, INK, MARKERS, plain

APART, ALONE = 1.03, 1.4  # factors on the log axis: between arms at a single budget, and around it


def draw(compared: Mapping[str, Any], path: Path) -> None:
    """Draw a comparison into a PNG or SVG file, by the name's ending, atomically; rollouts are on a log axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = compared["panels"]
    arms = list(dict.fromkeys(line["arm"] for panel in panels for line in panel["rows"]))
    height = 4.6 + 0.2 * len(arms)
    figure = Figure(figsize=(max(7.0, 4.6 * len(panels)), height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, panel, method_styles(arms))
    figure.text(0.02, 1 - 0.1 / height, "Mean J against rollouts", va="top", fontsize=14, fontweight="bold", color=INK)
    about = (
        "J(w) = (1 - alpha) w.R - alpha KL, mean over the grid; bands: 95 % intervals over training seeds and prompts"
    )
    figure.text(0.02, 1 - 0.4 / height, about, va="top", fontsize=8.5, color=FAINT)
    known: dict[str, Any] = {}
    for axes in figure.axes:
        known |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        known.values(), known.keys(), loc="lower left", bbox_to_anchor=(0.01, 0.01), ncols=2, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0,
    )  # fmt: skip
    figure.tight_layout(rect=(0.005, (0.2 + 0.11 * len(arms)) / height, 0.995, 1 - 0.6 / height), w_pad=2)
    kind = path.suffix.lstrip(".").lower() or "png"
    with atomic(path) as beside:
        figure.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _panel(axes: Any, panel: Mapping[str, Any], styles: Mapping[str, tuple[str, str]]) -> None:
    ticks = set()
    single = len({line["rollouts"] for line in panel["rows"]}) == 1  # then the arms stand side by side
    arms = list(dict.fromkeys(line["arm"] for line in panel["rows"]))
    for place, arm in enumerate(arms):
        lines = [line for line in panel["rows"] if line["arm"] == arm and line["mean_j"]]
        if not lines:  # evaluated at some weightings only
            continue
        lines.sort(key=lambda line: line["rollouts"])
        colour, marker = styles[arm]
        ticks |= {line["rollouts"] for line in lines}
        x = [line["rollouts"] * APART ** (place - (len(arms) - 1) / 2 if single else 0) for line in lines]
        value, low, high = ([line["mean_j"][key] for line in lines] for key in ("value", "low", "high"))
        axes.plot(
            x,
            value,
            color=colour,
            marker=MARKERS[marker],
            markersize=6,
            markeredgecolor="white",
            linewidth=1.8,
            label=arm,
        )
        if len(x) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        else:
            axes.vlines(x, low, high, color=colour, alpha=0.4)
    axes.set_xscale("log")
    if single and ticks:
        axes.set_xlim(min(ticks) / ALONE, max(ticks) * ALONE)
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)], rotation=45 if len(ticks) > 4 else 0)
    axes.minorticks_off()
    axes.set_title(f"{panel['panel']}: {', '.join(panel['objectives'])}", fontsize=10, color=INK, loc="left")
    axes.set_xlabel("rollouts of the training", color=INK)
    axes.set_ylabel("mean J (higher is better)", color=INK)
    plain(axes)
