"""One self-contained HTML file with the figures and tables of a run: it loads nothing, so it can be mailed."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clp_lightning.files import atomic
from clp_lightning.report.cells import decimals, measured, with_interval
from clp_lightning.report.figures import frontier_figure, objective_figure
from clp_lightning.report.labels import CAVEAT, difference_sentence, strength, weighting_label
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
        ("test prompts", compared["prompts"]), ("their groups", compared["groups"]),
        ("computed on", _computed_on(compared["computed_on"])), ("alpha", compared["alpha"]),
        ("resamples", compared["bootstrap_draws"]),
        ("reference point", ", ".join(f"{n} {v:g}" for n, v in compared["reference_point"].items())),
        ("normalization (mean, std)",
         "; ".join(f"{n} ({s['mean']:.4g}, {s['std']:.4g})" for n, s in compared["normalization"].items())),
    ]  # fmt: skip
    pairs, volumes = (
        [pair for pair in compared["comparisons"] if pair["statistic"] == name] for name in ("mean_j", "hypervolume")
    )
    at = f" ({known})" if (known := strength(compared)) else ""
    left_out = [f"{name}: {reason}" for name, reason in compared["left_out"].items()]
    parts = [
        f"<h1>Frontier: {html.escape(' against '.join(objectives))}</h1>",
        f'<p class="faint">{html.escape(CAVEAT)} Rewards are standardized; up and to the right is better.</p>',
        "<h2>What training maximizes</h2>",
        f'<p class="faint">J(w) = (1 - alpha) w.R - alpha KL{at}, at every weighting; bands and intervals are 95 %.</p>',
        *([objective_figure(compared)] if pairs else []),
        _table("Mean J over the weightings", ["method", "mean J [95 %]", "regret", "KL"], [_j_row(method) for method in methods]),
        "<ul>", *(f"<li>{html.escape(difference_sentence(pair))}</li>" for pair in pairs), "</ul>",
        f'<p class="faint">Pairs compared: {len(volumes)}; each interval is for its pair alone.</p>',
        _table("J at each weighting, and behind the best method there by", *_by_weighting(methods)),
        "<h2>Frontiers of mean rewards</h2>",
        frontier_figure(compared, plotly=not pairs),
        _table("Hypervolumes [95 %] and steering", ["method", *_VOLUMES.values(), *(f"tau {n}" for n in objectives)],
               [_method_row(method, objectives) for method in methods]),
        _table("Costs", ["method", *_COSTS.values()], [_cost_row(method) for method in methods]),
        *(_table(f"Share of a method's {what} (column) that the row dominates", ["", *(m["method"] for m in methods)],
                 [_dominance_row(method, methods, kind) for method in methods]) for kind, what in _SHARES.items()),
        "<h2>Hypervolume of rewards, paired over prompts</h2><ul>",
        *(f"<li>{html.escape(difference_sentence(pair))}</li>" for pair in volumes), "</ul>",
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


_VOLUMES = {
    "hypervolume": "hypervolume [95 %]", "hypervolume_above_reference": "above the reference",
    "regularized_hypervolume": "regularized", "regularized_hypervolume_above_reference": "regularized, above the reference",
}  # fmt: skip
_SHARES = {"dominated_share": "points", "regularized_dominated_share": "regularized points"}


def _j_row(method: Mapping[str, Any]) -> list[str]:
    cells = (measured(method["metrics"].get(name), 3) for name in ("mean_j", "mean_regret"))
    return [method["method"], *cells, decimals(method["mean_kl"], 2)]


def _by_weighting(methods: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: J of every method at each weighting, with its KL there and what the best method has more."""
    names = [method["method"] for method in methods]
    cells: dict[str, dict[str, str]] = {}
    for method in methods:
        for point in method["by_weighting"]:
            behind = "best" if point["regret"] < 0.005 else f"behind {point['regret']:.2f}"
            text = f"{with_interval(point['j'], point['j_interval'])}, {behind}, KL {point['kl']:.1f}"
            cells.setdefault(weighting_label(point["weighting"]), {})[method["method"]] = text
    return ["w", *names], [[label, *(row.get(name, "–") for name in names)] for label, row in cells.items()]


def _method_row(method: Mapping[str, Any], objectives: Sequence[str]) -> list[str]:
    taus = [f"{method['steerability'][n]:.2f}" if n in method["steerability"] else "–" for n in objectives]
    return [method["method"], *(measured(method["metrics"].get(name)) for name in _VOLUMES), *taus]


def _cost_row(method: Mapping[str, Any]) -> list[str]:
    costs = ["–" if method["cost"][name] is None else f"{method['cost'][name]:,.0f}" for name in _COSTS]
    return [method["method"], *costs]


def _dominance_row(method: Mapping[str, Any], methods: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    shares = [method[kind].get(other["method"]) for other in methods]
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


def _computed_on(known: Mapping[str, Any] | None) -> str:
    if known is None:
        return "not known"
    trained = "; ".join(f"{name} trained on {where}" for name, where in known["training"].items())
    return f"evaluated on {known['evaluation']}; {trained}"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{html.escape(caption)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
