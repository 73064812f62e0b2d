"""Figures from data frames (`Store.points`, `Store.metrics`); knows no Streamlit."""

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from clp_lightning.report import METHOD_STYLES, method_styles, weighting_label

INK, FAINT, GRID = "#1F2933", "#52606D", "#E4E7EB"
REFERENCE = next(iter(METHOD_STYLES))


def frontier_figure(points: pd.DataFrame, objectives: Sequence[str], axes: tuple[str, str] | None = None) -> go.Figure:
    """Mean rewards of every method with 95 % bars; a line per method where two objectives are all there are.

    `axes` chooses two of the objectives (the first two by default). A single objective is drawn as a row per method.
    """
    x, y = axes or (objectives[0], objectives[1] if len(objectives) > 1 else "")
    styles = method_styles(points.method.unique())
    figure = go.Figure()
    for row, (method, (colour, symbol)) in enumerate(styles.items()):
        own = points[points.method == method]
        figure.add_scatter(
            name=html.escape(method), x=own[f"reward:{x}"], y=own[f"reward:{y}"] if y else [-row] * len(own),
            mode="lines+markers" if len(objectives) == 2 and len(own) > 1 else "markers",
            line={"color": colour, "width": 2.5},
            marker={"color": colour, "symbol": symbol, "size": 17 if method == REFERENCE else 10,
                    "line": {"color": "white", "width": 1}},
            error_x=_bars(own, x, colour), error_y=_bars(own, y, colour) if y else None,
            text=[_hover(point, method, objectives) for _, point in own.iterrows()],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        if len(objectives) == 2 and len(own) > 1 and own[f"w:{x}"].notna().all():
            for end in (own.iloc[0], own.iloc[-1]):
                label = weighting_label(weighting(end, objectives))
                figure.add_annotation(
                    x=end[f"reward:{x}"], y=end[f"reward:{y}"], text=f"<b>{label}</b>",
                    showarrow=False, xanchor="left", yanchor="bottom", xshift=5, yshift=4,
                    font={"color": colour, "size": 12},
                )  # fmt: skip
    figure.update_xaxes(title={"text": f"{x} (standardized)", "standoff": 8})
    if y:
        figure.update_yaxes(title={"text": f"{y} (standardized)", "standoff": 4})
    else:
        figure.update_yaxes(tickvals=[-row for row in range(len(styles))], ticktext=list(styles))
    return dress(figure, 500)


def hypervolume_figure(metrics: pd.DataFrame) -> go.Figure:
    """Hypervolume of every method with its 95 % interval, one row each, the best on top."""
    volumes = metrics[metrics.metric == "hypervolume"].sort_values("value")
    styles = method_styles(metrics.method.unique())
    figure = go.Figure()
    for _, row in volumes.iterrows():
        colour, symbol = styles[row.method]
        figure.add_scatter(
            name=html.escape(row.method), x=[row.value], y=[html.escape(row.method)], mode="markers+text",
            text=[f"<b>{row.value:.2f}</b>"], textposition="top center", textfont={"color": colour, "size": 14},
            marker={"color": colour, "symbol": symbol, "size": 17 if row.method == REFERENCE else 12},
            error_x={"type": "data", "symmetric": False, "array": [row.high - row.value],
                     "arrayminus": [row.value - row.low], "color": colour, "thickness": 2.5, "width": 5},
            hovertemplate=f"{row.value:.2f}, 95 % [{row.low:.2f}, {row.high:.2f}]<extra></extra>",
        )  # fmt: skip
    dress(figure, 110 + 62 * len(volumes))
    figure.update_layout(showlegend=False, margin={"t": 14})
    figure.update_xaxes(title={"text": "hypervolume", "standoff": 8})
    figure.update_yaxes(range=[-0.5, len(volumes) - 0.3], showgrid=False)
    return figure


def weighting(point: pd.Series, objectives: Sequence[str]) -> dict[str, float] | None:
    """The point's weighting by objective, None for a policy that takes none."""
    weights = {name: float(point[f"w:{name}"]) for name in objectives}
    return None if any(pd.isna(value) for value in weights.values()) else weights


def _hover(point: pd.Series, method: str, objectives: Sequence[str]) -> str:
    weights = weighting(point, objectives)
    lines = [f"<b>{html.escape(method)}</b>" + ("" if weights is None else f" at {weighting_label(weights)}")]
    for name in objectives:
        low, high = point[f"low:{name}"], point[f"high:{name}"]
        lines.append(f"{html.escape(name)} {point[f'reward:{name}']:.2f} [{low:.2f}, {high:.2f}]")
    if pd.notna(point.kl):
        lines.append(f"KL {point.kl:.2f} nats, {point.length:.1f} tokens")
    return "<br>".join(lines)


def _bars(own: pd.DataFrame, objective: str, colour: str) -> dict[str, object]:
    value = own[f"reward:{objective}"]
    faint = "rgba({}, {}, {}, 0.35)".format(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)))
    return {"type": "data", "symmetric": False, "array": own[f"high:{objective}"] - value,
            "arrayminus": value - own[f"low:{objective}"], "color": faint, "thickness": 1.2, "width": 0}  # fmt: skip


def dress(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure the look that all of them share."""
    axis = {"gridcolor": GRID, "zeroline": False, "tickfont": {"color": FAINT}, "automargin": True, "fixedrange": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(
        height=height, margin={"l": 8, "r": 12, "t": 8, "b": 8}, plot_bgcolor="white", paper_bgcolor="white",
        font={"color": INK, "size": 14, "family": "Source Sans, sans-serif"},
        hoverlabel={"bgcolor": "white", "font": {"color": INK}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": None},
    )  # fmt: skip
