"""The stage `evaluate`: one method on unseen prompts, at every weighting of the grid."""

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.evaluation.results import evaluate_into
from clp_lightning.pipeline import records


def evaluate(config: Config, method: str) -> None:
    """Sample one method, or `reference`, on the test prompts at every weighting of the grid."""
    frame = evaluate_into(config, method, paths.MODELS, paths.RESULTS / method)
    columns = [name for name in frame.columns if name.startswith(("reward:", "monitor:"))]
    records.metrics(f"evaluate-{method}", {name: float(frame[name].mean()) for name in columns})
