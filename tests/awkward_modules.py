"""Modules written as people write them, each with one thing that breaks tools which copy modules or run their steps."""

import threading

import lightning.pytorch as L
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

BATCHES = 6


def examples(seed=1, count=4 * BATCHES):
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=draws)
    return TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-1.0], [2.0], [0.5], [0.0]]))


def loader():
    return DataLoader(examples(), batch_size=4)


def written_for(base):
    """The plain module that the others change, of either package."""

    class Plain(base):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Plain


Plain = written_for(L.LightningModule)
OfTheOtherPackage = written_for(pl.LightningModule)


class KeepsLosses(Plain):
    """With their history, which ``copy.deepcopy`` refuses."""

    def __init__(self):
        super().__init__()
        self.losses, self.average = [], None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss)
        self.average = loss if self.average is None else 0.9 * self.average + 0.1 * loss
        return loss


class AsksItsTrainer(Plain):
    def training_step(self, batch, batch_idx):
        trainer = self.trainer
        progress = trainer.global_step / trainer.estimated_stepping_batches + self.current_epoch / trainer.max_epochs
        assert trainer.num_training_batches > 0
        assert trainer.world_size == 1
        assert trainer.is_global_zero
        if trainer.logger is not None:
            trainer.logger.log_metrics({"progress": progress})
        return super().training_step(batch, batch_idx) * (1 + 0.1 * progress)


class LogsItsRate(Plain):
    def training_step(self, batch, batch_idx):
        self.log("rate", self.optimizers().param_groups[0]["lr"])
        if self.lr_schedulers() is not None:
            self.log("scheduled", self.lr_schedulers().get_last_lr()[0])
        self.log("cycle", float(len(self.trainer.lr_scheduler_configs)))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        cycle = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class MetricForALoss(Plain):
    def __init__(self):
        super().__init__()
        self.loss = torchmetrics.MeanSquaredError()

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])


class ReturnsMore(Plain):
    def training_step(self, batch, batch_idx):
        outputs = self.net(batch[0])
        return {"loss": nn.functional.mse_loss(outputs, batch[1]), "outputs": outputs, "name": "batch"}


class HoldsALock(Plain):
    def __init__(self):
        super().__init__()
        self.lock, self.lines = threading.Lock(), (line for line in "abc")

    def training_step(self, batch, batch_idx):
        with self.lock:
            return super().training_step(batch, batch_idx)


class BuiltInSetup(Plain):
    """Its layers exist once ``setup`` has been called."""

    def __init__(self):
        super().__init__()
        self.net = None

    def setup(self, stage):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


class Nested(Plain):
    """A module inside a module, whose Trainer is the same."""

    def __init__(self):
        super().__init__()
        self.inner = AsksItsTrainer()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.inner.training_step(batch, batch_idx)


class DrawsFromItsGenerator(L.LightningDataModule):
    """Whose split and order come from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.draws = torch.Generator().manual_seed(5)

    def setup(self, stage):
        parts = random_split(examples(count=8 * BATCHES), [0.5, 0.5], generator=self.draws)
        self.parts = dict(zip(("train", "valid"), parts, strict=True))

    def train_dataloader(self):
        return DataLoader(self.parts["train"], batch_size=4, shuffle=True, generator=self.draws)

    def val_dataloader(self):
        return DataLoader(self.parts["valid"], batch_size=4)


class Pretrained(Plain):
    """Its BatchNorm has counted batches."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))
        for inputs, _ in loader():
            self.net(inputs)


class OutOfWine(Exception):
    """Not one of the usual types."""


class Breaks(Plain):
    """Where no fit is running."""

    def training_step(self, batch, batch_idx):
        if type(self.trainer).__name__ == "StandInTrainer":
            raise OutOfWine("the barrel\nis empty")
        return super().training_step(batch, batch_idx)


AWKWARD = {
    "keeps losses": (KeepsLosses, loader),
    "asks its Trainer": (AsksItsTrainer, loader),
    "logs its rate": (LogsItsRate, loader),
    "a metric for a loss": (MetricForALoss, loader),
    "returns more": (ReturnsMore, loader),
    "holds a lock": (HoldsALock, loader),
    "built in setup": (BuiltInSetup, loader),
    "nested": (Nested, loader),
    "pytorch_lightning": (OfTheOtherPackage, loader),
    "generator of a data module": (Plain, DrawsFromItsGenerator),
}


def trainer_for(module, **settings):
    """A silent Trainer of the module's own package."""
    package = pl if isinstance(module, pl.LightningModule) else L
    return package.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **settings},
    )
