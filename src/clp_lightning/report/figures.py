"""The figures of the HTML report (plotly, loaded only here)."""

import html
from collections.abc import Mapping
from typing import Any

from clp_lightning.report.labels import method_styles, weighting_label


def objective_figure(compared: Mapping[str, Any]) -> str:
    """J of every method against the weighting with 95 % bands, and plotly's own script: who is ahead where.

    Of two objectives the horizontal axis is the weight of the first, of one its weight against the KL term; of more each
    weighting has its place.
    """
    objectives = compared["objectives"]
    figure, styles = _figure(), method_styles(method["method"] for method in compared["methods"])
    for method in compared["methods"]:
        points, (colour, symbol), name = method["by_weighting"], styles[method["method"]], html.escape(method["method"])
        labels = [weighting_label(point["weighting"]) for point in points]
        x = labels if len(objectives) > 2 else [point["weighting"][objectives[0]] for point in points]
        low, high = ([point["j_interval"][end] for point in points] for end in (0, 1))
        figure.add_scatter(
            x=[*x, *reversed(x)], y=[*low, *reversed(high)], fill="toself", fillcolor=colour, opacity=0.15, line={"width": 0},
            mode="lines", hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        figure.add_scatter(
            name=name, x=x, y=[point["j"] for point in points], mode="lines+markers", legendgroup=name,
            line={"color": colour}, marker={"color": colour, "symbol": symbol, "size": 8},
            text=[f"{label}, KL {point['kl']:.2f}, regret {point['regret']:.3f}"
                  for label, point in zip(labels, points, strict=True)],
            hovertemplate="w = %{text}<br>J %{y:.3f}",
        )  # fmt: skip
    title = f"w = {' : '.join(objectives)}" if len(objectives) > 2 else f"weight of {objectives[0]}"
    figure.update_layout(
        height=440, template="plotly_white", margin={"l": 10, "r": 10, "t": 10, "b": 10}, xaxis_title=title,
        yaxis_title="J = (1 - alpha) w.R - alpha KL", legend={"orientation": "h", "y": 1.1},
    )  # fmt: skip
    return _html(figure, plotly=True)


def frontier_figure(compared: Mapping[str, Any], *, plotly: bool) -> str:
    """The first two objectives (one: against nothing) with 95 % bars; with `plotly` its own script stands before it."""
    objectives = compared["objectives"]
    x, y = objectives[0], objectives[min(1, len(objectives) - 1)]
    figure = _figure()
    styles = method_styles(method["method"] for method in compared["methods"])
    for method in compared["methods"]:
        points, (colour, symbol) = method["points"], styles[method["method"]]
        values = {name: [point["rewards"][name] for point in points] for name in (x, y)}
        bars = {
            name: {
                "type": "data", "symmetric": False, "color": colour, "thickness": 0.8, "width": 0,
                "array": [point["intervals"][name][1] - point["rewards"][name] for point in points],
                "arrayminus": [point["rewards"][name] - point["intervals"][name][0] for point in points],
            }
            for name in (x, y)
        }  # fmt: skip
        figure.add_scatter(
            name=html.escape(method["method"]), x=values[x], y=values[y], error_x=bars[x], error_y=bars[y],
            mode="lines+markers" if len(objectives) == 2 else "markers", line={"color": colour},
            marker={"color": colour, "symbol": symbol, "size": 10},
            text=[weighting_label(point["weighting"]) for point in points],
            hovertemplate=f"w = %{{text}}<br>{html.escape(x)} %{{x:.2f}}<br>{html.escape(y)} %{{y:.2f}}",
        )  # fmt: skip
    figure.update_layout(
        height=560, template="plotly_white", margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis_title=f"{x} (standardized)", yaxis_title=f"{y} (standardized)", legend={"orientation": "h", "y": 1.08},
    )  # fmt: skip
    return _html(figure, plotly=plotly)


def _figure() -> Any:
    import plotly.graph_objects as go

    return go.Figure()


def _html(figure: Any, *, plotly: bool) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=plotly, config={"displayModeBar": False}))
