"""The stages `pairs` and `reward_model`: what one learned reward is trained on, and its training."""

import shutil
import sys

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.data.pairs import build_pairs
from clp_lightning.data.splits import read_split
from clp_lightning.files import atomic
from clp_lightning.pipeline import records


def pairs(config: Config, name: str) -> None:
    """Make or read the preference pairs of one learned reward."""
    out = paths.PAIRS / name
    sizes = build_pairs(config, name, paths.CORPUS, out)
    kinds = read_split(out, "train")["kind"].value_counts()
    by_kind = {str(kind): int(count) for kind, count in kinds.items()}
    records.metrics(f"pairs-{name}", {**sizes, "train_by_kind": by_kind})


def reward_model(config: Config, name: str) -> None:
    """Train one learned reward and measure its held-out pairwise accuracy."""
    from clp_lightning.training.reward_model import train_reward_model  # torch, which `pairs` needs not

    settings, pairs = config.reward_models[name], paths.PAIRS / name
    checkpoints = paths.checkpoints(f"reward_model-{name}", settings, config.seed, pairs)
    metrics = train_reward_model(settings, config.seed, pairs, paths.MODELS / name, checkpoints, config.compute.device)
    with atomic(paths.REPORTS / "curves" / f"reward_model-{name}.csv") as beside:
        shutil.copyfile(paths.MODELS / name / "training_curve.csv", beside)
    records.metrics(f"reward_model-{name}", metrics)
    paths.remove(checkpoints)
    heldout = metrics["heldout"]
    print(
        f"clp: {name}: accuracy {heldout['accuracy']:.3f} [{heldout['low']:.3f}, {heldout['high']:.3f}] on "
        f"{heldout['pairs']} held-out pairs",
        file=sys.stderr,
    )
