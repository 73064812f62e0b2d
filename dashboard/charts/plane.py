"""The frontier in the plane of two objectives, and a metric of all methods beside each other."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from charts.drawing import FEW, INK, REFERENCE, Key, Styles, Trace, bars, drawn, faint, hover, room, scatter, weighting
from clp_lightning.frontier.metrics import nondominated
from clp_lightning.report.labels import weighting_label


def frontier_figure(
    points: pd.DataFrame,
    objectives: Sequence[str],
    styles: Styles,
    axes: tuple[str, str] | None = None,
    samples: Mapping[Key, str] | None = None,
    unit: str = "standardized",
) -> go.Figure:
    """Mean rewards of every method with 95 % bars; with two objectives each method's non-dominated front is a line.

    Points that another point of their method dominates are hollow. `axes` chooses two of the objectives (the first two by
    default); a single objective is drawn as a row per method. `samples` has an answer for (method, weighting_id), shown with
    the point. Each point carries that pair as its custom data. `unit` is what the axes' titles have in brackets.
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
            error_x=bars(own, x, colour, bold), **({"error_y": bars(own, y, colour, bold)} if y else {}),
            customdata=own[["method", "weighting_id"]].to_numpy().tolist(),
            text=[hover(point, objectives, samples) for point in own.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        if len(objectives) == 2 and len(own) > 1 and own[f"w:{x}"].notna().all() and len(methods) <= FEW:
            traces += _label_ends(own, objectives, (x, y), colour)
    rows = {"tickvals": [-row for row in range(len(methods))], "ticktext": methods}
    return drawn(
        traces, 520, {"title": f"{x} ({unit})"}, {"title": f"{y} ({unit})"} if y else rows,
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


def metric_figure(metrics: pd.DataFrame, metric: str, title: str, styles: Styles) -> go.Figure:
    """A metric of every method with its 95 % interval, one row each, the best on top."""
    volumes = metrics[metrics.metric == metric].sort_values("value")
    traces: list[Trace] = []
    for _, row in volumes.iterrows():
        colour, symbol = styles[row.method]
        traces += scatter(
            name=html.escape(row.method), x=[row.value], y=[html.escape(row.method)], mode="markers+text",
            text=[f"<b>{row.value:z.2f}</b>"], textposition="top center", textfont={"color": colour, "size": 14},
            marker={"color": colour, "symbol": symbol, "size": 17 if row.method == REFERENCE else 12},
            error_x={"type": "data", "symmetric": False, "array": [row.high - row.value],
                     "arrayminus": [row.value - row.low], "color": colour, "thickness": 2.5, "width": 5},
            hovertemplate=f"{row.value:.2f}, 95 % [{row.low:.2f}, {row.high:.2f}]<extra></extra>",
        )  # fmt: skip
    return drawn(
        traces, 110 + (62 if len(volumes) <= FEW else 40) * len(volumes), {"title": title},
        {"range": [-0.5, len(volumes) - 0.3], "showgrid": False}, margin={"l": room(volumes.method), "t": 14},
        showlegend=False,
    )  # fmt: skip
