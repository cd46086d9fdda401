"""Run by ``test_rank_dies.py`` under ``torchrun``: a fit on two gloo ranks, in which one may be killed.

``two_ranks_one_dies.py FOLDER STEPS [DIE_AT]`` goes on from ``FOLDER/last.ckpt`` where there is one; before
step ``DIE_AT`` rank 1 writes the time to ``FOLDER/died`` and kills itself.
"""

import os
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter

FOLDER, STEPS = Path(sys.argv[1]), int(sys.argv[2])
DIE_AT = int(sys.argv[3]) if len(sys.argv) > 3 else -1


class Model(L.LightningModule):
    """Each epoch is one batch, a half for each rank."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return LearnedOptimizer(self)


class Die(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == DIE_AT and trainer.global_rank == 1:
            (FOLDER / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(1)
    batch = [(torch.randn(5, generator=draws), torch.randint(3, (), generator=draws)) for _ in range(8)]
    checkpoints = ModelCheckpoint(FOLDER, filename="{step}", every_n_epochs=1, save_last=True)
    trainer = L.Trainer(
        max_steps=STEPS,
        callbacks=[LearnedOptimizerAdapter(), Die(), checkpoints],
        devices=2,
        accelerator="cpu",
        strategy=DDPStrategy(process_group_backend="gloo"),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = FOLDER / "last.ckpt"
    trainer.fit(Model(), DataLoader(batch, batch_size=4), ckpt_path=last if last.exists() else None)


if __name__ == "__main__":
    main()
