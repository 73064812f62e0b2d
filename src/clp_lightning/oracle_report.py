"""What `clp oracle` shows: progress, a table or JSON, and the frontiers as a picture."""

import itertools
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clp_lightning.files import atomic
from clp_lightning.oracle_run import OPTIMUM, default_picture, run
from clp_lightning.picture import FAINT, INK, MARKERS
from clp_lightning.report import method_styles

KEYS = ("method", "hypervolume_ratio", "regret_mean", "regret_max", "seconds")


def report(objectives: int, alpha: float, seed: int, *, steps: int, picture: Path | None, as_json: bool) -> None:
    """Run the methods, print the comparison, and draw it into `picture` (by default a file in reports/)."""
    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def progress(method: str, step: int) -> None:
            if method not in tasks:
                tasks[method] = bars.add_task(method, total=steps)
            bars.update(tasks[method], completed=step)

        result = run(objectives, alpha, seed, steps=steps, progress=progress)
    path = picture or default_picture(alpha, objectives, seed)
    draw(result, path)
    if as_json:
        methods = [{key: row[key] for key in KEYS} for row in result["methods"] if row["method"] != OPTIMUM]
        print(
            json.dumps({**{key: result[key] for key in ("seed", "alpha", "objectives", "steps")}, "methods": methods})
        )
        return
    title = (
        f"{objectives} objectives, alpha {alpha:g}, seed {seed}, {steps} steps, {len(result['weightings'])} weightings"
    )
    table = Table("method", "hypervolume / optimum", "mean regret", "max regret", "seconds", title=title)
    for row in result["methods"]:
        if row["method"] != OPTIMUM:
            figures = [f"{row[key]:.3f}" for key in KEYS[1:4]]
            table.add_row(row["method"], *figures, f"{row['seconds']:.0f}" if row["seconds"] else "-")
    Console().print(table)
    print(
        "Hypervolume of the regularized rewards (1 - alpha) E[R_i] - alpha KL, above the worst value of each "
        f"objective that the optimal policies or the reference policy have. Picture: {path}"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the learned frontiers over the exact one, a panel per pair of the first three objectives, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = result["objectives"]
    pairs = list(itertools.combinations(range(min(count, 3)), 2)) or [(0, 0)]
    figure = Figure(figsize=(1.8 + 5.4 * len(pairs), 6.2), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    rows = {row["method"]: row for row in result["methods"] if not row["method"].startswith("exact")}
    styles = method_styles(rows)
    for panel, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for name, row in rows.items():
            colour, marker = styles[name]
            exact = name == OPTIMUM
            points = row["regularized_rewards"]
            panel.plot(
                [point[x] for point in points], [point[y] for point in points], label=_label(row),
                color=INK if exact else colour, linewidth=2.6 if exact else 1.2, marker="" if exact else MARKERS[marker],
                markersize=5, linestyle="-" if count <= 2 else "none", zorder=1 if exact else 2,
                **({"marker": "o", "alpha": 0.35} if exact and count > 2 else {}),
            )  # fmt: skip
        panel.set_xlabel(f"objective {x + 1}: (1 - alpha) E[R] - alpha KL", color=INK)
        panel.set_ylabel(f"objective {y + 1}", color=INK)
        panel.grid(color="#E4E7EB", linewidth=0.8)
        panel.tick_params(colors=FAINT, length=0)
    figure.suptitle(
        f"Learned frontiers and the exact one (alpha {result['alpha']:g}, seed {result['seed']}); in brackets the share of "
        "the optimal hypervolume", fontsize=11, color=INK, x=0.02, ha="left",
    )  # fmt: skip
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    figure.tight_layout(rect=(0, 0.1, 1, 0.97))
    with atomic(path) as beside:
        figure.savefig(beside, format=path.suffix.lstrip(".").lower() or "png")


def _label(row: dict[str, Any]) -> str:
    return OPTIMUM if row["method"] == OPTIMUM else f"{row['method']} ({row['hypervolume_ratio']:.2f})"
