"""Run by ``test_online_meta_training.py`` in a process of its own: two gloo ranks, stopped and resumed.

``python two_ranks_online_meta_training.py FOLDER`` leaves ``FOLDER/<fit>-<rank>.pt``.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from small_fits import Module, fit

from lightning_lopt import OnlineMetaTraining, ResidualRule
from lightning_lopt.meta.search import Search

OUT = Path(sys.argv[1])
ENTRY = "constants.log_step_size"


class Report(Callback):
    """Writes, on every rank, what a rank has to agree on with the other."""

    def __init__(self, name):
        self.name, self.recorded = name, 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.recorded += float(batch[0].sum())

    def on_train_end(self, trainer, pl_module):
        (search,) = (callback.search for callback in trainer.callbacks if isinstance(callback, OnlineMetaTraining))
        report = {
            "parameters": [param.detach().clone() for param in pl_module.parameters()],
            "theta": search.theta[ENTRY],
            "start": search.start[ENTRY],
            "rounds": search.rounds,
            "recorded": self.recorded,
        }
        torch.save(report, OUT / f"{self.name}-{trainer.global_rank}.pt")


def adapted(name, epochs=8, **settings):
    rule = ResidualRule(direction=False, controller=False)
    search = partial(Search, pairs=1)
    callback = OnlineMetaTraining(
        rule, folder=OUT / name, inner_steps=3, held_out=1, every_n_steps=1, max_share=1.0, search=search
    )
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    callbacks = [Report(name), *settings.pop("callbacks", [])]
    fit(
        Module(lambda module: None),
        adapter=callback,
        epochs=epochs,
        callbacks=callbacks,
        devices=2,
        strategy=strategy,
        **settings,
    )


if __name__ == "__main__":
    # three batches an epoch on each rank: a round of four is still recording where an epoch ends
    adapted("straight", callbacks=[ModelCheckpoint(OUT, save_top_k=-1, every_n_epochs=1, filename="{epoch}")])
    adapted("resumed", ckpt=OUT / "epoch=0.ckpt")
