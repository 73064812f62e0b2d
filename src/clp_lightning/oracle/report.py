"""What `clp oracle` shows: progress, a table or JSON, and the frontiers as a picture."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clp_lightning.errors import UsageError, plural
from clp_lightning.files import atomic, file_at
from clp_lightning.oracle.run import OPTIMUM, STEPS, default_picture, run
from clp_lightning.report.labels import method_styles
from clp_lightning.report.picture import FAINT, INK, MARKERS

PICTURES = (".png", ".svg")
KEYS = ("method", "hypervolume_ratio", "regret_mean", "regret_max", "seconds")


def report(
    objectives: int,
    alpha: float,
    seed: int,
    *,
    steps: int | None,
    picture: Path | None,
    as_json: bool,
    methods: Sequence[str] = (),
) -> None:
    """Run the methods (by default some), print the comparison, draw it into `picture` (by default a file in reports/)."""
    steps, path = steps or STEPS, default_picture(alpha, objectives, seed)
    path = path if picture is None else file_at(picture, path.name)
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--picture {path}: expected a name that ends in {' or '.join(PICTURES)}")
    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def progress(method: str, step: int) -> None:
            if method not in tasks:
                tasks[method] = bars.add_task(method, total=steps)
            bars.update(tasks[method], completed=step)

        result = run(objectives, alpha, seed, steps=steps, progress=progress, methods=methods)
    _print(result, as_json=as_json)
    draw(result, path)
    print(f"picture: {path}", file=sys.stderr)


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        methods = [{key: row[key] for key in KEYS} for row in result["methods"] if row["method"] != OPTIMUM]
        setting = {key: result[key] for key in ("seed", "alpha", "objectives", "steps")}
        print(json.dumps({**setting, "methods": methods}))
        return
    table = Table(
        "method", "hypervolume / optimum", "mean regret", "max regret", "seconds",
        title=f"{plural(result['objectives'], 'objective')}, alpha {result['alpha']:g}, seed {result['seed']}, "
        f"{result['steps']} steps, {plural(len(result['weightings']), 'weighting')}",
    )  # fmt: skip
    for row in result["methods"]:
        if row["method"] != OPTIMUM:
            figures = [f"{row[key]:.3f}" for key in KEYS[1:4]]
            table.add_row(row["method"], *figures, f"{row['seconds']:.0f}" if row["seconds"] else "-")
    Console().print(table)
    print(
        "Hypervolume of the regularized rewards (1 - alpha) E[R_i] - alpha KL, above the worst value of each objective that\n"
        "the optimal policies or the reference policy have. Seconds on one core; logit-mixing needs those of rewarded-soups."
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the learned frontiers over the exact one, a panel per pair of the first three objectives, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = result["objectives"]
    pairs = list(itertools.combinations(range(min(count, 3)), 2)) or [(0, 0)]
    figure = Figure(figsize=(max(9.6, 5.0 * len(pairs)), 6.6), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    rows = {row["method"]: row for row in result["methods"] if not row["method"].startswith("exact")}
    styles = method_styles(rows)
    for panel, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for name, row in rows.items():
            colour, marker = styles[name]
            exact = name == OPTIMUM
            points = row["regularized_rewards"]
            lines = count <= 2
            panel.plot(
                [point[x] for point in points],
                [point[y] for point in points],
                label=_label(row),
                color=INK if exact else colour,
                linewidth=2.6 if exact else 1.2,
                linestyle="-" if lines else "none",
                marker=("" if lines else "o") if exact else MARKERS[marker],
                markersize=9 if exact else 5,
                alpha=0.4 if exact and not lines else 1.0,
                zorder=1 if exact else 2,
            )
        panel.set_xlabel(f"objective {x + 1}: (1 - alpha) E[R] - alpha KL", color=INK)
        panel.set_ylabel(f"objective {y + 1}", color=INK)
        panel.grid(color="#E4E7EB", linewidth=0.8)
        panel.tick_params(colors=FAINT, length=0)
    title = f"Learned frontiers and the exact one (alpha {result['alpha']:g}, seed {result['seed']})"
    note = "in brackets: hypervolume as a share of the optimum's"
    figure.suptitle(f"{title}\n{note}", fontsize=11, color=INK, x=0.02, ha="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    figure.tight_layout(rect=(0, 0.13, 1, 0.98))
    with atomic(path) as beside:
        figure.savefig(beside, format=path.suffix.lstrip(".").lower() or "png")


def _label(row: dict[str, Any]) -> str:
    return OPTIMUM if row["method"] == OPTIMUM else f"{row['method']} ({row['hypervolume_ratio']:.2f})"
