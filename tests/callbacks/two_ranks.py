"""Run by ``test_adapter_ranks.py`` in a process of its own: fits on two gloo ranks, each of which writes what it has.

``python two_ranks.py FOLDER`` leaves ``FOLDER/<fit>-<rank>.pt`` with parameters, the losses that the rule saw, steps.
"""

import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from small_fits import ManualModule, Module, Recorder, fit, loader, trained
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter

OUT = Path(sys.argv[1])


class Report(Callback):
    """Writes, on every rank, what a rank has to agree on with the others."""

    def __init__(self, name):
        self.name = name

    def on_train_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        report = {
            "parameters": [param.detach().clone() for param in pl_module.parameters()],
            "state": [value for state in optimizer.state.values() for value in state.values()],
            "shared": dict(optimizer.param_groups[0]["shared"]),
            "own_losses": pl_module.losses,
            "seen": getattr(optimizer.rule, "seen", []),
            "steps": int(optimizer.param_groups[0]["step"]),
            "skipped": optimizer.skipped_steps,
            "total_steps": optimizer.total_steps,
        }
        torch.save(report, OUT / f"{self.name}-{trainer.global_rank}.pt")


class Manual(ManualModule):
    """Passes the loss of its own rank to ``step``."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        optimizer.step(loss=loss)
        self.losses.append(float(loss.detach()))  # which is still that of this rank


class OneRankDiverges(Module):
    """The second loss of rank 1 is not finite, while all gradients are."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + float("inf") if (batch_idx, self.global_rank) == (1, 1) else loss


class ValidatedOnRankZero(Module):
    """Logs a validation loss that rises, and only on rank 0."""

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log("val_loss", 1.0 + self.current_epoch, rank_zero_only=True)


def learned(module):
    return LearnedOptimizer(module, trained(Recorder()))


def learned_for_six_steps(module):
    return LearnedOptimizer(module, trained(Recorder()), total_steps=6)


def adamw(module):
    return torch.optim.AdamW(module.parameters())


def two_ranks():
    return {"devices": 2, "strategy": DDPStrategy(start_method="fork", process_group_backend="gloo")}


def main():
    save = ModelCheckpoint(OUT, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit(Module(learned), callbacks=[Report("plain"), save], **two_ranks())
    fit(Module(learned), callbacks=[Report("resumed")], ckpt=OUT / "epoch=0.ckpt", **two_ranks())
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"}
    fit(Module(learned), callbacks=[Report("accumulation")], **settings, **two_ranks())
    swap = LearnedOptimizerAdapter(trained(Recorder()))
    fit(Module(adamw), adapter=swap, callbacks=[Report("swap")], **two_ranks())
    fit(Manual(learned), callbacks=[Report("manual")], **two_ranks())
    fit(Module(adamw), adapter=LearnedOptimizerAdapter("base"), callbacks=[Report("long")], epochs=14, **two_ranks())
    data = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    swap = LearnedOptimizerAdapter("base")
    fit(ValidatedOnRankZero(adamw), adapter=swap, callbacks=[Report("validated")], epochs=3, data=data, **two_ranks())
    fit(OneRankDiverges(learned), callbacks=[Report("diverging")], **two_ranks())
    without = Module(learned_for_six_steps)
    fit(without, adapter=Report("without"), **two_ranks())


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    main()
