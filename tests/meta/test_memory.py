"""Memory stays flat over a long meta-training."""

import gc
import os
from pathlib import Path

import lightning.pytorch as L
import pytest
from lightning.pytorch.callbacks import Callback

from lightning_lopt import PES, MetaTrainer, SGDRule, TaskDataModule
from lightning_lopt.tasks import QuadraticFamily

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Memory(Callback):
    def __init__(self, every):
        self.every, self.resident, self.objects = every, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            gc.collect()
            self.resident.append(resident_mib())
            self.objects.append(len(gc.get_objects()))


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.slow)], ids=["300", "10000"])
def test_memory_is_flat(steps):
    memory = Memory(steps // 5)
    trainer = L.Trainer(
        max_steps=steps,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[memory],
    )
    trainer.fit(
        MetaTrainer(SGDRule(0.01), PES(2, pairs=1), groups=1, horizons=(2, 8)), TaskDataModule(QuadraticFamily())
    )
    print([round(value, 1) for value in memory.resident], memory.objects)
    assert memory.resident[-1] - memory.resident[1] < 4
    assert memory.objects[-1] - memory.objects[1] < 100
