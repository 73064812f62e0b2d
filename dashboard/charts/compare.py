"""Figures that set methods against each other: matrix, cost beside benefit, rewards by weight, history. No Streamlit."""

import html
from collections.abc import Collection

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from charts.drawing import INK, REFERENCE, Styles, Trace, drawn, faint, room, scatter

FEW = 4  # methods whose bands can be told apart
# white to the blue of the theme: readable with any colour vision, also in grey
SCALE = [[0, "#FFFFFF"], [0.5, "#9CC7E4"], [1, "#00649C"]]


def matrix_figure(values: pd.DataFrame, what: str) -> go.Figure:
    """Shares (0..1) of row method against column method as a matrix labelled in percent; NaN is left empty."""
    names = [html.escape(name) for name in values.index]
    text = values.map(lambda value: "" if pd.isna(value) else f"{100 * value:.0f}").to_numpy().tolist()
    shares = values.astype(object).where(values.notna(), None).to_numpy().tolist()
    cells = dict(  # plotly chooses black or white for the text of each cell
        type="heatmap", z=shares, x=names, y=names, zmin=0, zmax=1, colorscale=SCALE, showscale=False, xgap=2, ygap=2,
        text=text, texttemplate="%{text}", textfont={"size": 14} if len(names) <= 8 else {},  # {}: what fits into a cell
        hovertemplate=f"%{{y}} against %{{x}}<br>{html.escape(what)}: %{{z:.0%}}<extra></extra>",
    )  # fmt: skip
    return drawn(
        [cells], 130 + 34 * max(4, len(names)),
        {"side": "top", "showgrid": False, "tickangle": -35 if len(names) > 4 else 0},
        {"autorange": "reversed", "showgrid": False},
        margin={"l": room(values.index), "r": 30, "t": 90 if len(names) > 4 else 30, "b": 8},
    )  # fmt: skip


def cost_figure(benefit: pd.DataFrame, cost: str, label: str, styles: Styles, metric: str) -> go.Figure:
    """A metric with its interval against a cost; columns method, value, low, high and the cost."""
    traces: list[Trace] = []
    for row in benefit.itertuples():
        colour, symbol = styles[row.method]
        traces += scatter(
            name=html.escape(row.method), x=[getattr(row, cost)], y=[row.value], mode="markers", cliponaxis=False,
            marker={"color": colour, "symbol": symbol, "size": 16 if row.method == REFERENCE else 13},
            error_y={"type": "data", "symmetric": False, "array": [row.high - row.value],
                     "arrayminus": [row.value - row.low], "color": colour, "thickness": 1.6, "width": 4},
            hovertemplate=f"{html.escape(row.method)}<br>{metric} {row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
                          f"<br>{html.escape(label)} %{{x:,.6~g}}<extra></extra>",
        )  # fmt: skip
    height = 420 if len(benefit) <= FEW else 520
    return drawn(traces, height, {"title": label, "rangemode": "tozero"}, {"title": metric})


def steering_figure(
    points: pd.DataFrame, objective: str, styles: Styles, value: str | None = None, label: str | None = None
) -> go.Figure:
    """Mean reward of an objective against its weight, a line per method; `value` and its `label` name another column.

    Up to `FEW` methods have their 95 % bands: of more nothing would be seen.
    """
    column, limits = value or f"reward:{objective}", [f"low:{objective}", f"high:{objective}"]
    traces, methods = list[Trace](), points.method.nunique()
    # several points may share a weight where there are more than two objectives: the line goes through their mean
    means = points.groupby(["method", f"w:{objective}"], sort=True)[[column, *limits]].mean()
    drawable = set(means.index.get_level_values("method"))
    for method in filter(drawable.__contains__, points.method.unique()):
        colour, symbol = styles[method]
        line = means.loc[method]
        if value is None and methods <= FEW:
            band = line[limits]
            traces += scatter(
                x=np.concatenate([band.index, band.index[::-1]]).tolist(),
                y=np.concatenate([band[f"low:{objective}"], band[f"high:{objective}"][::-1]]).tolist(),
                fill="toself", fillcolor=faint(colour), line={"width": 0}, hoverinfo="skip", showlegend=False,
                legendgroup=method, mode="lines",
            )  # fmt: skip
        traces += scatter(
            name=html.escape(method), x=line.index.tolist(), y=line[column].tolist(), mode="lines+markers",
            legendgroup=method, line={"color": colour, "width": 2.5},
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate=f"{html.escape(method)}<br>weight %{{x:.2f}}: %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    return drawn(
        traces, 400 if methods <= FEW else 500, {"title": f"weight of {objective}", "range": [-0.03, 1.03]},
        {"title": label or f"{objective} (standardized)"},
    )  # fmt: skip


def strength_figure(strengths: pd.DataFrame, styles: Styles) -> go.Figure:
    """Mean KL against the KL strength, a line per method; columns method, alpha, kl."""
    traces: list[Trace] = []
    for method, own in strengths.groupby("method"):
        colour, symbol = styles[method]
        own = own.sort_values("alpha")
        traces += scatter(
            name=html.escape(method), x=own.alpha.tolist(), y=own.kl.tolist(), mode="lines+markers",
            line={"color": colour, "width": 2.5}, marker={"color": colour, "symbol": symbol, "size": 9},
            hovertemplate=f"{html.escape(method)}<br>alpha %{{x:g}}: KL %{{y:.2f}} nats<extra></extra>",
        )  # fmt: skip
    kl = {"title": "KL to the reference (nats per answer)", "rangemode": "tozero"}
    return drawn(traces, 400, {"title": "KL strength alpha"}, kl)


def history_figure(
    history: pd.DataFrame, styles: Styles, metric: str, promoted: Collection[tuple[str, str]] = ()
) -> go.Figure:
    """A metric of every method over the runs, oldest first; columns run_id, published_at, method, value, low, high.

    Points whose (run_id, method) is in `promoted` have a ring.
    """
    traces: list[Trace] = []
    order = history.sort_values("published_at").run_id.unique().tolist()
    for method in history.method.unique():
        own = history[history.method == method].sort_values("published_at")
        colour, symbol = styles[method]
        traces += scatter(
            name=html.escape(method), x=[order.index(run) + 1 for run in own.run_id], y=own.value.tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 1.5},
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}},
            error_y={"type": "data", "symmetric": False, "array": (own.high - own.value).tolist(),
                     "arrayminus": (own.value - own.low).tolist(), "color": faint(colour, 0.5), "thickness": 1.2, "width": 0},
            customdata=np.stack([own.run_id, own.published_at.dt.strftime("%Y-%m-%d %H:%M")], axis=1).tolist(),
            hovertemplate=f"{html.escape(method)}<br>%{{customdata[1]}} UTC<br>run %{{customdata[0]}}"
                          f"<br>{metric} %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    crowned = history[[pair in promoted for pair in zip(history.run_id, history.method, strict=True)]]
    if len(crowned):
        traces += scatter(
            name="became the champion", x=[order.index(run) + 1 for run in crowned.run_id], y=crowned.value.tolist(),
            mode="markers", hoverinfo="skip", marker={"symbol": "circle-open", "size": 22, "color": INK, "line": {"width": 2}},
        )  # fmt: skip
    runs = {"title": "run, oldest first", "dtick": max(1, len(order) // 12), "range": [0.5, len(order) + 0.5]}
    return drawn(traces, 400, runs, {"title": metric})


def stages_figure(stages: pd.DataFrame) -> go.Figure:
    """Seconds of each stage as bars, in the order in which they ran."""
    bars = dict(
        type="bar", x=stages.seconds.tolist(), y=stages.stage.tolist(), orientation="h", marker={"color": "#0072B2"},
        text=[f"{seconds:.0f} s" for seconds in stages.seconds], textposition="outside", cliponaxis=False,
        customdata=stages.peak_memory_mb.tolist(), hovertemplate="%{y}: %{x:.1f} s, %{customdata:,.0f} MB<extra></extra>",
    )  # fmt: skip
    return drawn(
        [bars], 80 + 30 * len(stages), {"title": "seconds"}, {"autorange": "reversed", "showgrid": False},
        margin={"l": room(stages.stage), "r": 60},
    )  # fmt: skip
