"""Figures for three and more objectives: weightings as a triangle, the front to be turned, parallel coordinates. No Streamlit."""

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from charts.drawing import FAINT, GRID, INK, REFERENCE, Styles, Trace, drawn, hover, scatter

SCALE = "Viridis"  # rises in lightness, the same for any colour vision


def ternary_figure(points: pd.DataFrame, objectives: Sequence[str], objective: str) -> go.Figure:
    """Weightings of one method on the triangle of three objectives, coloured by the mean reward of `objective`."""
    own = points.dropna(subset=[f"w:{name}" for name in objectives])
    corners = {axis: own[f"w:{name}"].tolist() for axis, name in zip("abc", objectives, strict=True)}
    lattice = dict(
        type="scatterternary", **corners, mode="markers", cliponaxis=False,
        text=[hover(point, objectives) for point in own.to_dict("records")],
        customdata=own[["method", "weighting_id"]].to_numpy().tolist(), hovertemplate="%{text}<extra></extra>",
        marker={"size": 22, "color": own[f"reward:{objective}"].tolist(), "colorscale": SCALE,
                "line": {"color": "white", "width": 1},
                "colorbar": {"title": {"text": html.escape(objective), "side": "top"}, "thickness": 14, "outlinewidth": 0,
                             "orientation": "h", "y": -0.2, "len": 0.8}},
    )  # fmt: skip
    axes = {
        f"{axis}axis": {"title": {"text": html.escape(name)}, "gridcolor": GRID, "linecolor": FAINT,
                        "tickvals": [0.25, 0.5, 0.75], "tickfont": {"color": FAINT}}
        for axis, name in zip("abc", objectives, strict=True)
    }  # fmt: skip
    return drawn(
        [lattice], 560, ternary={**axes, "bgcolor": "white"}, showlegend=False, margin={"l": 40, "r": 40, "t": 50, "b": 30},
        clickmode="event+select",
    )  # fmt: skip


def rotatable_figure(points: pd.DataFrame, objectives: Sequence[str], styles: Styles) -> go.Figure:
    """Mean rewards of every method in the space of three objectives, to be turned with the mouse."""
    traces: list[Trace] = []
    for method in points.method.unique():
        colour = styles[method][0]
        own = points[points.method == method]
        x, y, z = (own[f"reward:{name}"].tolist() for name in objectives)
        traces += scatter(
            type="scatter3d", name=html.escape(method), x=x, y=y, z=z, mode="markers",
            marker={"color": colour, "size": 9 if method == REFERENCE else 5,
                    "symbol": "diamond" if method == REFERENCE else "circle", "line": {"color": "white", "width": 1}},
            text=[hover(point, objectives) for point in own.to_dict("records")], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    axis = {"gridcolor": GRID, "backgroundcolor": "white", "color": INK, "zeroline": False}
    named = {
        f"{a}axis": {**axis, "title": {"text": n}} for a, n in zip("xyz", map(html.escape, objectives), strict=True)
    }
    scene = {**named, "camera": {"eye": {"x": 1.5, "y": 1.5, "z": 0.9}}}
    return drawn(traces, 620, scene=scene, margin={"l": 8, "b": 8})


def parallel_figure(points: pd.DataFrame, objectives: Sequence[str], styles: Styles) -> go.Figure:
    """Parallel coordinates: a line per point over all objectives, coloured by method; the reference is drawn last."""
    traces: list[Trace] = []
    for method in sorted(points.method.unique(), key=lambda name: name == REFERENCE):
        colour, symbol = styles[method]
        for position, point in enumerate(points[points.method == method].to_dict("records")):
            traces += scatter(
                name=html.escape(method), x=list(objectives), y=[point[f"reward:{name}"] for name in objectives],
                mode="lines+markers", legendgroup=method, showlegend=position == 0,
                line={"color": colour, "width": 3 if method == REFERENCE else 1.2},
                marker={"color": colour, "symbol": symbol, "size": 6}, opacity=0.9 if method == REFERENCE else 0.6,
                text=[hover(point, objectives)] * len(objectives), hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    return drawn(traces, 520, y={"title": "reward (standardized)"})
