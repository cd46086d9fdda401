"""The time of LearnedOptimizerAdapter in a training step of a ResNet-18 on 32 x 32 images, with a logger.

    python examples/benchmarks/adapter_overhead.py --batch 32 --steps 20
    python examples/benchmarks/adapter_overhead.py --manual

The script measures the time of the hooks of the adapter and of the whole training step. The rule is as fast as AdamW.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter

HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end")


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet18(L.LightningModule):
    """ResNet-18 with a stem for small images."""

    def __init__(self, manual: bool) -> None:
        super().__init__()
        widths = [64, 64, 128, 256, 512]
        blocks = [
            Block(widths[index] if first else widths[index + 1], widths[index + 1], 2 if first and index else 1)
            for index in range(4)
            for first in (True, False)
        ]
        stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.net = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> LearnedOptimizer:
        return LearnedOptimizer(self, AdamRule())


class Timed(LearnedOptimizerAdapter):
    """An adapter that sums the seconds in its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        for name in HOOKS:
            setattr(self, name, self._timed(getattr(self, name)))

    def _timed(self, hook: Any) -> Any:
        def timed(*args: Any) -> None:
            began = time.perf_counter()
            hook(*args)
            self.seconds += time.perf_counter() - began

        return timed


class Clock(L.Callback):
    """Prints the seconds of a step and of the adapter's hooks, without the first ``skip`` steps."""

    def __init__(self, adapter: Timed, skip: int = 3) -> None:
        self.adapter, self.skip = adapter, skip

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.skip:
            self.began, self.adapter.seconds = time.perf_counter(), 0.0

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        steps = trainer.global_step - self.skip
        step, hooks = (time.perf_counter() - self.began) / steps, self.adapter.seconds / steps
        print(f"A step takes {step * 1e3:.1f} ms; the adapter takes {hooks * 1e3:.3f} ms of it ({hooks / step:.2%}).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--manual", action="store_true", help="manual optimization")
    arguments = parser.parse_args()
    images = torch.randn(arguments.batch * arguments.steps, 3, 32, 32)
    data = TensorDataset(images, torch.randint(10, (len(images),)))
    adapter = Timed()
    with TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=arguments.accelerator,
            devices=1,
            logger=CSVLogger(Path(folder)),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[adapter, Clock(adapter)],
        )
        trainer.fit(ResNet18(arguments.manual), DataLoader(data, batch_size=arguments.batch))


if __name__ == "__main__":
    main()
