"""Figures from data frames (`Store.points`, `Store.metrics`); knows no Streamlit."""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from clp_lightning.frontier.metrics import nondominated
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


def frontier_figure(
    points: pd.DataFrame,
    objectives: Sequence[str],
    styles: Styles,
    axes: tuple[str, str] | None = None,
    samples: Mapping[Key, str] | None = None,
) -> go.Figure:
    """Mean rewards of every method with 95 % bars; with two objectives each method's non-dominated front is a line.

    Points that another point of their method dominates are hollow. `axes` chooses two of the objectives (the first two by
    default); a single objective is drawn as a row per method. `samples` has an answer for (method, weighting_id), shown with
    the point. Each point carries that pair as its custom data.
    """
    x, y = axes or (objectives[0], objectives[1] if len(objectives) > 1 else "")
    methods = list(points.method.unique())
    traces, bold = list[Trace](), 0.35 if len(methods) <= FEW else 0.15
    for row, method in enumerate(methods):
        colour, symbol = styles[method]
        own = points[points.method == method]
        front = nondominated(own[[f"reward:{name}" for name in objectives]].to_numpy())
        first = np.argsort(~front, kind="stable")  # a point that is not hollow: the legend shows the first one's marker
        own, front = own.iloc[first], front[first]
        if len(objectives) == 2 and len(own) > 1:
            line = own[front].sort_values(f"reward:{x}")
            traces += scatter(
                x=line[f"reward:{x}"].tolist(), y=line[f"reward:{y}"].tolist(), mode="lines",
                line={"color": colour, "width": 2.5}, hoverinfo="skip", showlegend=False, legendgroup=method,
            )  # fmt: skip
        traces += scatter(
            name=html.escape(method), x=own[f"reward:{x}"].tolist(),
            y=own[f"reward:{y}"].tolist() if y else [-row] * len(own),
            mode="markers", legendgroup=method,
            marker={"color": colour, "symbol": [symbol if on else f"{symbol}-open" for on in front],
                    "size": 17 if method == REFERENCE else 10,
                    "line": {"color": ["white" if on else colour for on in front],
                             "width": [1 if on else 2 for on in front]}},
            error_x=_bars(own, x, colour, bold), **({"error_y": _bars(own, y, colour, bold)} if y else {}),
            customdata=own[["method", "weighting_id"]].to_numpy().tolist(),
            text=[hover(point, objectives, samples) for point in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        if len(objectives) == 2 and len(own) > 1 and own[f"w:{x}"].notna().all() and len(methods) <= FEW:
            traces += _label_ends(own, objectives, (x, y), colour)
    rows = {"tickvals": [-row for row in range(len(methods))], "ticktext": methods}
    return drawn(
        traces, 520, {"title": f"{x} (standardized)"}, {"title": f"{y} (standardized)"} if y else rows,
        clickmode="event+select", dragmode=False,
    )  # fmt: skip


def _label_ends(own: pd.DataFrame, objectives: Sequence[str], axes: tuple[str, str], colour: str) -> list[Trace]:
    """Return the weightings as text at a method's ends: where w puts all on one objective."""
    x, y = axes
    order, labels = own.sort_values(f"w:{x}"), list[Trace]()
    for end, side in ((order.iloc[0], "top right"), (order.iloc[-1], "bottom right")):
        label = weighting_label(weighting(end, objectives))
        labels += scatter(
            x=[end[f"reward:{x}"]], y=[end[f"reward:{y}"]], text=[f"\u00a0\u00a0<b>{label}</b>"], mode="text", textposition=side,
            textfont={"color": colour, "size": 12}, hoverinfo="skip", showlegend=False, legendgroup=own.method.iloc[0],
            cliponaxis=False,
        )  # fmt: skip
    return labels


def attainment_bands(
    figure: go.Figure, surfaces: Mapping[str, Mapping[float, np.ndarray]], styles: Styles
) -> go.Figure:
    """Add, per method, the band between what one and what all runs attain, and the median's line; surfaces [M, 2]."""
    for method, by_share in surfaces.items():
        colour = styles[method][0]
        every = np.concatenate(list(by_share.values()))
        corner = every.min(0) - 0.05 * np.ptp(every, axis=0)  # outlines end a little beyond the outermost points
        best, all_runs = (stairs(by_share[share], corner) for share in (min(by_share), max(by_share)))
        outline = np.concatenate([best, all_runs[::-1]])
        figure.add_scatter(
            x=outline[:, 0].tolist(), y=outline[:, 1].tolist(), mode="lines", fill="toself",
            fillcolor=faint(colour, 0.16), line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=method,
        )  # fmt: skip
        if 0.5 in by_share:
            median = stairs(by_share[0.5], corner)
            figure.add_scatter(
                x=median[:, 0].tolist(), y=median[:, 1].tolist(), mode="lines",
                line={"color": colour, "width": 1, "dash": "dot"}, hoverinfo="skip", showlegend=False, legendgroup=method,
            )  # fmt: skip
    return figure


def stairs(surface: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return the corners [2 M + 1, 2] of the region above `corner` [2] and below and left of some point of `surface` [M, 2]."""
    order = surface[np.argsort(surface[:, 0])]
    steps = np.repeat(order, 2, axis=0)
    steps[1:-1:2, 1] = order[1:, 1]  # down at the same x, then right to the next point
    steps[-1, 1] = corner[1]
    return np.vstack([[corner[0], order[0, 1]], steps])


def add_stars(figure: go.Figure, stars: Sequence[tuple[str, float, float, str]]) -> go.Figure:
    """Add single answers (label, x, y, colour) as labelled stars."""
    for label, x, y, colour in stars:
        figure.add_scatter(
            x=[x], y=[y], mode="markers+text", text=[f"<b>{html.escape(label)}</b>"], textposition="top center",
            textfont={"color": INK, "size": 14}, showlegend=False,
            hovertemplate=f"{html.escape(label)}<br>%{{x:.2f}}, %{{y:.2f}}<extra></extra>",
            marker={"symbol": "star", "size": 20, "color": colour, "line": {"color": INK, "width": 1.5}},
        )  # fmt: skip
    return figure


def hypervolume_figure(metrics: pd.DataFrame, styles: Styles) -> go.Figure:
    """Hypervolume of every method with its 95 % interval, one row each, the best on top."""
    volumes = metrics[metrics.metric == "hypervolume"].sort_values("value")
    traces: list[Trace] = []
    for _, row in volumes.iterrows():
        colour, symbol = styles[row.method]
        traces += scatter(
            name=html.escape(row.method), x=[row.value], y=[html.escape(row.method)], mode="markers+text",
            text=[f"<b>{row.value:.2f}</b>"], textposition="top center", textfont={"color": colour, "size": 14},
            marker={"color": colour, "symbol": symbol, "size": 17 if row.method == REFERENCE else 12},
            error_x={"type": "data", "symmetric": False, "array": [row.high - row.value],
                     "arrayminus": [row.value - row.low], "color": colour, "thickness": 2.5, "width": 5},
            hovertemplate=f"{row.value:.2f}, 95 % [{row.low:.2f}, {row.high:.2f}]<extra></extra>",
        )  # fmt: skip
    return drawn(
        traces, 110 + (62 if len(volumes) <= FEW else 40) * len(volumes), {"title": "hypervolume"},
        {"range": [-0.5, len(volumes) - 0.3], "showgrid": False}, margin={"l": room(volumes.method), "t": 14},
        showlegend=False,
    )  # fmt: skip


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


def _bars(own: pd.DataFrame, objective: str, colour: str, bold: float) -> dict[str, object]:
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
