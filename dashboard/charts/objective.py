"""What training maximizes, J = (1 - alpha) w.R - alpha KL, against the weighting: who is ahead where. No Streamlit."""

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from charts.drawing import FAINT, INK, REFERENCE, Styles, Trace, drawn, faint, scatter, weighting
from clp_lightning.report.labels import weighting_label

FEW = 4  # steered methods whose bands can be told apart


def objective_figure(values: pd.DataFrame, objectives: Sequence[str], styles: Styles) -> go.Figure:
    """J of every method against the weighting, with 95 % bands of up to `FEW` methods; rows as of `Store.objective`.

    Of two objectives the axis is the weight of the first, of one its weight against the KL term; of more each weighting has its
    place and its bar.
    """
    traces, methods = list[Trace](), list(values.method.unique())
    for method in methods:
        own, (colour, symbol) = values[values.method == method], styles[method]
        place = positions(own, objectives)
        if len(objectives) <= 2 and len({*methods} - {REFERENCE}) <= FEW:
            traces += _band(place, own.j_low.tolist(), own.j_high.tolist(), colour, method)
        bars = {"type": "data", "symmetric": False, "array": (own.j_high - own.j).tolist(), "width": 0, "thickness": 1.2,
                "arrayminus": (own.j - own.j_low).tolist(), "color": faint(colour, 0.4)}  # fmt: skip
        traces += scatter(
            name=html.escape(method), x=place, y=own.j.tolist(), legendgroup=method,
            mode="lines+markers" if len(objectives) <= 2 else "markers", line={"color": colour, "width": 2.5},
            marker={"color": colour, "symbol": symbol, "size": 8}, **({"error_y": bars} if len(objectives) > 2 else {}),
            text=[f"{label(point, objectives)}<br>J {point.j:.3f} [{point.j_low:.3f}, {point.j_high:.3f}], KL {point.kl:.2f}"
                  f"<br>{_behind(point.regret)}" for _, point in own.iterrows()],
            hovertemplate=f"<b>{html.escape(method)}</b> at %{{text}}<extra></extra>",
        )  # fmt: skip
    return drawn(traces, 440, _axis(values, objectives), {"title": "J"})


def ahead_figure(differences: pd.DataFrame, objectives: Sequence[str], styles: Styles) -> go.Figure:
    """The paired difference in J of two methods at each weighting with its 95 % band; rows as of `Store.by_weighting`.

    Points have the colour of the method that is ahead there; hollow ones are not shown to be different from 0.
    """
    a, b = differences.method_a.iloc[0], differences.method_b.iloc[0]
    place, value = positions(differences, objectives), differences.difference
    sure = (differences.from_ > 0) | (differences.to_ < 0)
    ahead = [styles[a if each > 0 else b] for each in value]
    few = len(objectives) <= 2
    traces = _band(place, differences.from_.tolist(), differences.to_.tolist(), FAINT, "difference") if few else []
    traces += scatter(
        x=place, y=value.tolist(), mode="lines+markers" if few else "markers", line={"color": FAINT, "width": 1.5},
        marker={"color": [colour for colour, _ in ahead], "size": 12,
                "symbol": [symbol if on else f"{symbol}-open" for (_, symbol), on in zip(ahead, sure, strict=True)]},
        **({} if few else {"error_y": {"type": "data", "symmetric": False, "array": (differences.to_ - value).tolist(),
                                       "arrayminus": (value - differences.from_).tolist(), "color": FAINT, "width": 0}}),
        text=[f"{label(point, objectives)}<br>{point.difference:+.3f} [{point.from_:.3f}, {point.to_:.3f}]"
              for _, point in differences.iterrows()],
        hovertemplate="%{text}<extra></extra>", showlegend=False,
    )  # fmt: skip
    zero = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": INK, "width": 1}}]
    return drawn(
        traces, 300, _axis(differences, objectives), {"title": "difference in J"}, shapes=zero, showlegend=False
    )


def positions(rows: pd.DataFrame, objectives: Sequence[str]) -> list[Any]:
    """Return where rows stand on the axis: the weight of the first objective or, of more than two, the weighting as a text."""
    if len(objectives) <= 2:
        return [float(value) for value in rows[f"w:{objectives[0]}"]]
    return [label(row, objectives) for _, row in rows.iterrows()]


def label(row: Any, objectives: Sequence[str]) -> str:
    """The row's weighting as people write it."""
    return weighting_label(weighting(row, objectives))


def _axis(rows: pd.DataFrame, objectives: Sequence[str]) -> dict[str, Any]:
    if len(objectives) <= 2:
        return {"title": f"weight of {objectives[0]}", "range": [-0.03, 1.03]}
    order = rows.sort_values([f"w:{name}" for name in objectives])
    return {
        "title": f"w = {' : '.join(objectives)}", "type": "category", "tickangle": -45,
        "categoryarray": list(dict.fromkeys(positions(order, objectives))), "categoryorder": "array",
    }  # fmt: skip


def _band(x: list[Any], low: list[float], high: list[float], colour: str, group: str) -> list[Trace]:
    return scatter(
        x=[*x, *reversed(x)], y=[*low, *reversed(high)], fill="toself", fillcolor=faint(colour), line={"width": 0},
        hoverinfo="skip", showlegend=False, legendgroup=group, mode="lines",
    )  # fmt: skip


def _behind(regret: float) -> str:
    return "the best there" if regret < 0.0005 else f"{regret:.3f} behind the best there"
