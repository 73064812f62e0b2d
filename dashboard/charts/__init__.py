"""Figures from data frames (`Store.points`, `Store.metrics`); they know no Streamlit, so that a test can draw them.

May import: clp_lightning.report (labels), clp_lightning.frontier.
"""

from charts.compare import cost_figure, history_figure, matrix_figure, stages_figure, steering_figure, strength_figure
from charts.drawing import (
    FAINT,
    FEW,
    REFERENCE,
    REFERENCE_COLOUR,
    Key,
    drawn,
    shade,
    themed,
    weighting,
)
from charts.many import parallel_figure, rotatable_figure, ternary_figure
from charts.objective import ahead_figure, objective_figure
from charts.plane import add_stars, attainment_bands, frontier_figure, metric_figure, stairs

__all__ = [
    "FAINT",
    "FEW",
    "REFERENCE",
    "REFERENCE_COLOUR",
    "Key",
    "add_stars",
    "ahead_figure",
    "attainment_bands",
    "cost_figure",
    "drawn",
    "frontier_figure",
    "history_figure",
    "matrix_figure",
    "metric_figure",
    "objective_figure",
    "parallel_figure",
    "rotatable_figure",
    "shade",
    "stages_figure",
    "stairs",
    "steering_figure",
    "strength_figure",
    "ternary_figure",
    "themed",
    "weighting",
]
