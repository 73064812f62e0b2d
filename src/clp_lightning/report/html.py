"""One self-contained HTML file with the figures and tables of a run: it loads nothing, so it can be mailed."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clp_lightning.files import atomic
from clp_lightning.report.labels import CAVEAT, difference_sentence, method_styles, weighting_label
from clp_lightning.report.run import comparison
from clp_lightning.store.queries import MONITORS, Store

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1F2933; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px } caption { text-align: left; font-weight: 600 }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #E4E7EB }
th:first-child, td:first-child { text-align: left } .faint { color: #52606D; font-size: 14px } .wide { overflow-x: auto }
"""


def write_html(store: Store, run: str | None, path: Path | str) -> None:
    """Write the report of a run (the latest by default) to `path`, atomically; raises `ClpError` for an unknown run."""
    compared = comparison(store, run)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as beside:
        beside.write_text(_page(compared), encoding="utf-8")


def _page(compared: Mapping[str, Any]) -> str:
    objectives, methods = compared["objectives"], compared["methods"]
    about = [
        ("run", compared["run"]), ("published", compared["published_at"]), ("code", compared["code_commit"]),
        ("seed", compared["seed"]), ("training seed", compared["training_seed"]), ("corpus", compared["corpus_hash"]),
        ("test prompts", compared["prompts"]), ("resamples", compared["bootstrap_draws"]),
        ("reference point", ", ".join(f"{n} {v:g}" for n, v in compared["reference_point"].items())),
        ("normalization (mean, std)",
         "; ".join(f"{n} ({s['mean']:.4g}, {s['std']:.4g})" for n, s in compared["normalization"].items())),
    ]  # fmt: skip
    pairs = [pair for pair in compared["comparisons"] if pair["statistic"] == "hypervolume"]
    left_out = [f"{name}: {reason}" for name, reason in compared["left_out"].items()]
    parts = [
        f"<h1>Frontier: {html.escape(' against '.join(objectives))}</h1>",
        f'<p class="faint">{html.escape(CAVEAT)} Rewards are standardized; up and to the right is better.</p>',
        _figure(compared),
        _table("Methods", ["method", "hypervolume [95 %]", *(f"tau {n}" for n in objectives), *_COSTS.values()],
               [_method_row(method, objectives) for method in methods]),
        _table("Share of a method's points (column) that the row dominates", ["", *(m["method"] for m in methods)],
               [_dominance_row(method, methods) for method in methods]),
        "<h2>Hypervolume, paired over prompts</h2><ul>",
        *(f"<li>{html.escape(difference_sentence(pair))}</li>" for pair in pairs), "</ul>",
        f'<p class="faint">Pairs compared: {len(pairs)}; each interval is for its pair alone.</p>',
        *([f"<h2>Left out</h2><p>{html.escape(' '.join(left_out))}</p>"] if left_out else []),
        _table("Every point", ["method", "w", *objectives, *MONITORS], _point_rows(methods, objectives)),
        _table("What reproduces it", ["", ""], [[name, str(value)] for name, value in about]),
    ]  # fmt: skip
    title = f"CLP Lightning, run {compared['run']}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )


_COSTS = {
    "rollouts": "rollouts", "train_seconds": "training, s", "forward_passes_per_token": "passes per token",
    "stored_parameters": "parameters", "models": "models",
}  # fmt: skip


def _figure(compared: Mapping[str, Any]) -> str:
    """The first two objectives (one: against nothing) with 95 % bars, as plotly's own script within the page."""
    import plotly.graph_objects as go

    objectives = compared["objectives"]
    x, y = objectives[0], objectives[min(1, len(objectives) - 1)]
    figure = go.Figure()
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
    return figure.to_html(full_html=False, include_plotlyjs=True, config={"displayModeBar": False})


def _method_row(method: Mapping[str, Any], objectives: Sequence[str]) -> list[str]:
    low, high = method["hypervolume_interval"]
    taus = [f"{method['steerability'][n]:.2f}" if n in method["steerability"] else "–" for n in objectives]
    costs = ["–" if method["cost"][name] is None else f"{method['cost'][name]:,.0f}" for name in _COSTS]
    return [method["method"], f"{method['hypervolume']:.2f} [{low:.2f}, {high:.2f}]", *taus, *costs]


def _dominance_row(method: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> list[str]:
    shares = [method["dominated_share"].get(other["method"]) for other in methods]
    return [method["method"], *("–" if share is None else f"{share['value']:.0%}" for share in shares)]


def _point_rows(methods: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> list[list[str]]:
    return [
        [
            method["method"],
            weighting_label(point["weighting"]),
            *(f"{point['rewards'][name]:.2f}" for name in objectives),
            *("–" if point["monitors"][name] is None else f"{point['monitors'][name]:.2f}" for name in MONITORS),
        ]
        for method in methods
        for point in method["points"]
    ]


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{html.escape(caption)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
