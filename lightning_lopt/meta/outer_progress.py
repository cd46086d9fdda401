"""The progress bar of meta-training, which counts outer steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar

from lightning_lopt.progress import Progress


class OuterProgress(ProgressBar):
    """Shows outer steps and the progress-bar metrics; without a terminal, it prints a line at most every 15 seconds.

    Example:
        >>> from lightning_lopt.meta.outer_progress import OuterProgress
        >>> trainer = L.Trainer(callbacks=[OuterProgress()], accelerator="cpu", logger=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None

    def disable(self) -> None:
        """Stop showing progress."""
        self._enabled = False

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called at the start of a fit, before a checkpoint is read; shows the first line."""
        super().setup(trainer, pl_module, stage)
        if self._enabled and trainer.is_global_zero:
            rule = getattr(pl_module, "rule", pl_module)
            total = None if trainer.max_steps < 0 else trainer.max_steps
            self._progress = Progress(f"meta-training a {type(rule).__name__}", total, "outer steps")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after a checkpoint was read, so that a resumed run shows the outer step at which it continues."""
        self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after each outer step."""
        self._show(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called at the end of a fit, also of a failed fit; shows the last line."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is None:
            return
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name != "v_num"}
        metrics_text = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()
        )
        total = max(trainer.max_steps, trainer.global_step) if trainer.max_steps >= 0 else None
        self._progress.to(trainer.global_step, total, metrics_text or "the first outer step")
