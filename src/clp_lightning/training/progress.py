"""Progress of a training: Lightning's rich bar on a terminal, a plain line now and then where output is a log."""

import logging
import sys
import time
import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from clp_lightning import progress


class ProgressLines(ProgressBar):
    """Prints `step 12 of 45, 1:40 left, loss 0.31` every few seconds, for logs that show no moving bar."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def disable(self) -> None:
        """Print nothing: Lightning asks this of every process but the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print again."""
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a resumed run estimates from its own steps."""
        self.started = self.printed = time.monotonic()
        self.first = trainer.global_step
        if self.enabled and self.first:
            print(f"resumed after step {self.first} of {trainer.max_steps}", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line when the last one is old, and after the last step."""
        now, step, steps = time.monotonic(), trainer.global_step, trainer.max_steps
        if not self.enabled or (step < steps and now - self.printed < progress.LINE_SECONDS):
            return
        self.printed = now
        left = (now - self.started) / max(1, step - self.first) * (steps - step)
        values = ", ".join(f"{name} {float(value):.3g}" for name, value in trainer.progress_bar_metrics.items())
        print(f"step {step} of {steps}, {progress.duration(left)} left, {values}", flush=True)


def quiet() -> None:
    """Keep Lightning's tips and deprecations of its own out of a stage's output; warnings of use stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # a run that resumes says so itself; its data follow from (seed, step), not from where a loader stood
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")


def progress_bar() -> ProgressBar:
    """Return what suits standard output: a moving bar on a terminal, lines elsewhere."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else ProgressLines()
