"""What every training of the pipeline shares: numbered steps, a curve and checkpoints that survive a kill, progress."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from clp_lightning.errors import ClpError
from clp_lightning.training.checkpoints import SafeCheckpointIO, last_checkpoint
from clp_lightning.training.progress import progress_bar, quiet


class StepModule(LightningModule):
    """What every trainer of the pipeline shares: steps known by their number, and a curve that survives a resume."""

    def __init__(self, steps: int, *, accumulate: int = 1) -> None:
        super().__init__()
        self.steps, self.accumulate = steps, accumulate  # optimizer steps, and micro-batches of each
        self.curve: list[dict[str, float]] = []

    @property
    def home(self) -> torch.device:
        """Where the parameters lie before and after a training, and hence where it runs."""
        return next(self.parameters()).device

    def train_dataloader(self) -> DataLoader:
        """One item per micro-batch; what it reads follows from its number alone, also after a resume."""
        return DataLoader(range(self.steps * self.accumulate), batch_size=None)  # type: ignore[arg-type]

    def linear_decay(self, optimizer: torch.optim.Optimizer, warmup: int) -> dict[str, Any]:
        """Pair an optimizer with a schedule: linear warm-up over `warmup` steps, then linear decay to 0."""
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, 1.0) * max(1 - step / self.steps, 0.0)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def record(self, **values: float) -> None:
        """Keep one row of the training curve and show it on the progress bar, if there is one."""
        self.curve.append({"step": self.global_step, **values})
        if self.trainer.progress_bar_callback is not None:  # a twentieth of a tiny model's step
            self.log_dict(dict(values), prog_bar=True, batch_size=1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the norm of the step's gradients, before they are clipped, in its rows of the curve."""
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        for row in self.curve[-self.accumulate :]:
            row["gradient_norm"] = norm

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The curve travels with the checkpoint, so that a resumed run has all of it."""
        checkpoint["curve"] = self.curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the curve where the checkpoint left it."""
        self.curve = [dict(row) for row in checkpoint["curve"]]


def fit(
    module: StepModule,
    *,
    checkpoints: Path,
    every: int,
    gradient_clip: float = 1.0,
    devices: int = 1,
    callbacks: Sequence[Callback] = (),
    show_progress: bool = True,
) -> None:
    """Train to `module.steps` with Lightning, from the last checkpoint in `checkpoints` when there is one.

    With several `devices` every one is a process that runs the same program (Lightning's DDP); only the first, whose
    `module.trainer.is_global_zero` is true, should write results. More of them than GPUs are a `ClpError`.
    """
    quiet()
    home = module.home
    if home.type == "cuda" and devices > torch.cuda.device_count():
        raise ClpError(f"training.devices: {devices}, but torch finds {torch.cuda.device_count()} GPU(s); lower it")
    trainer = Trainer(
        max_steps=module.steps,
        accelerator=home.type,
        devices=[home.index or 0] if home.type == "cuda" and devices == 1 else devices,
        strategy=_strategy(devices, home.type),
        accumulate_grad_batches=module.accumulate,
        logger=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[
            ModelCheckpoint(
                dirpath=checkpoints,
                filename="last",
                every_n_train_steps=every,
                save_top_k=1,
                enable_version_counter=False,
            ),
            *([progress_bar()] if show_progress else []),
            *callbacks,
        ],
        enable_progress_bar=show_progress,
        enable_model_summary=False,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=1,
    )
    last = last_checkpoint(checkpoints)
    try:
        trainer.fit(module, ckpt_path=str(last) if last else None)
    finally:  # Lightning takes what it trained to the CPU; the frozen base, which it does not know, stays
        module.to(home)


def _strategy(devices: int, kind: str) -> Any:
    if devices == 1:
        return "auto"
    return DDPStrategy(process_group_backend="nccl" if kind == "cuda" else "gloo")
