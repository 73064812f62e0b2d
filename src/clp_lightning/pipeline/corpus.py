"""The stage `corpus`: prompts with their reference answers, read and split."""

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.data.corpus import build_corpus
from clp_lightning.pipeline import records


def corpus(config: Config) -> None:
    """Read and split the prompts."""
    card = build_corpus(config, paths.CORPUS)
    records.metrics("corpus", {key: value for key, value in card.items() if key != "samples"})
