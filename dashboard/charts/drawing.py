"""What every figure is drawn with: colours in both themes, traces, axes, what a point says under the mouse."""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from clp_lightning.report.labels import METHOD_STYLES, weighting_label

INK, FAINT, GRID = "#1F2933", "#52606D", "#E4E7EB"
# The dark theme's partner of each colour that would not be seen on it; the others are the same in both themes.
DARK = {
    INK: "#E6EAEE", FAINT: "#A9B4BF", GRID: "#2C333B", "white": "#0E1117", "#000000": "#FFFFFF", "#332288": "#9A8FF0",
    "#882255": "#D874A4", "#6E6E6E": "#A6A6A6", "#0072B2": "#3D9BD9", "#AA4499": "#D07BC2",
}  # fmt: skip
REFERENCE = next(iter(METHOD_STYLES))
REFERENCE_COLOUR = METHOD_STYLES[REFERENCE][0]
FEW = 5  # methods whose bars and labels can be told apart
# Of ticks with two digits after the point and a title. Plotly widens what is too narrow, and draws all of it once more.
MARGIN = {"l": 60, "r": 12, "t": 8, "b": 54}
Axis = dict[str, Any]
Trace = dict[str, Any]
Point = Mapping[str, Any] | pd.Series  # a row of the points
Key = tuple[str, int]  # method, weighting_id
Styles = Mapping[str, tuple[str, str]]  # colour and marker of each method: `report.method_styles` of all of a run's


def weighting(point: Point, objectives: Sequence[str]) -> dict[str, float] | None:
    """The point's weighting by objective, None for a policy that takes none."""
    weights = {name: float(point[f"w:{name}"]) for name in objectives}
    return None if any(pd.isna(value) for value in weights.values()) else weights


def hover(point: Point, objectives: Sequence[str], samples: Mapping[Key, str] | None = None) -> str:
    """Return what a point shows under the mouse: method, weighting, rewards with intervals, KL, length, an answer."""
    weights = weighting(point, objectives)
    lines = [f"<b>{html.escape(point['method'])}</b>" + ("" if weights is None else f" at {weighting_label(weights)}")]
    for name in objectives:
        low, high = point[f"low:{name}"], point[f"high:{name}"]
        lines.append(f"{html.escape(name)} {point[f'reward:{name}']:.2f} [{low:.2f}, {high:.2f}]")
    if pd.notna(point["kl"]):
        lines.append(f"KL {point['kl']:.2f} nats, {point['length']:.1f} tokens")
    sample = (samples or {}).get((point["method"], int(point["weighting_id"])))
    if sample:
        lines += ["", *(f"<i>{html.escape(line)}</i>" for line in textwrap.wrap(sample, 48)[:4])]
    return "<br>".join(lines)


def bars(own: pd.DataFrame, objective: str, colour: str, bold: float) -> dict[str, object]:
    """Return the error bars of one objective's intervals, in a colour as strong as `bold` (0..1)."""
    value = own[f"reward:{objective}"]
    return {"type": "data", "symmetric": False, "array": (own[f"high:{objective}"] - value).tolist(),
            "arrayminus": (value - own[f"low:{objective}"]).tolist(), "color": faint(colour, bold),
            "thickness": 1.2, "width": 0}  # fmt: skip


def faint(colour: str, strength: float = 0.13) -> str:
    """Return a colour (#RRGGBB) with an opacity of `strength`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {strength})"


def shade(colour: str, *, dark: bool) -> str:
    """Return what a colour of the light theme is in the dark one."""
    return DARK.get(colour, colour) if dark else colour


def themed(figure: go.Figure, *, dark: bool) -> go.Figure:
    """Return the figure for a theme: in the dark one, every colour that is too dark to be seen is replaced by its partner."""
    if dark:
        text = figure.to_json()
        for light, partner in DARK.items():
            text = text.replace(f'"{light}"', f'"{partner}"')
        figure = go.Figure(json.loads(text))
    figure.layout.template = None  # every new figure has the default one; `drawn` has the look
    return figure


def scatter(**settings: Any) -> list[Trace]:
    """Return a trace of points or lines. A dictionary: `figure.add_scatter` takes the server longer."""
    return [{"type": "scatter", **settings}]


def drawn(
    traces: Sequence[Trace], height: int, x: Axis | None = None, y: Axis | None = None, **layout: Any
) -> go.Figure:
    """Return a figure with the look that all of them share; `x` and `y` are settings of its axes, a title is a text.

    What keeps the browser from drawing it two or three times (docs/dashboard.md): data that count as the same unless their
    revision changes (never: Streamlit makes other data a new figure), and margins that usually suffice. The data have to be
    lists: plotly takes the same array, sent twice, for two different ones.
    """
    axis = {"gridcolor": GRID, "zeroline": False, "tickfont": {"color": FAINT}, "automargin": True, "fixedrange": True}
    axes = {
        f"{name}axis": axis | own | ({"title": {"text": own["title"], "standoff": standoff}} if "title" in own else {})
        for name, own, standoff in (("x", x or {}, 8), ("y", y or {}, 4))
    }
    look = {
        "height": height, "datarevision": 1, "plot_bgcolor": "white", "paper_bgcolor": "white",
        "font": {"color": INK, "size": 14, "family": "Source Sans, sans-serif"},
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    }  # fmt: skip
    # all at once: every update of a figure takes the server milliseconds
    return go.Figure(list(traces), look | axes | layout | {"margin": MARGIN | layout.get("margin", {})})


def room(names: Iterable[str]) -> int:
    """Return pixels that names beside an axis need at most: with fewer, plotly draws all of the figure once more."""
    return 10 + round(7.5 * max((len(name) for name in names), default=0))
