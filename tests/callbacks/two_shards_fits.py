"""Run by ``test_adapter_shards.py`` in a process of its own: fits with FSDP2 on two gloo ranks.

``python two_shards_fits.py FOLDER`` leaves checkpoints, and ``FOLDER/<fit>-<rank>.pt`` with what each rank has: whole
parameters, whole states and counters at the end, and trained and evaluation weights when a checkpoint was written.
"""

import os
import socket
import sys
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from small_fits import BATCHES, Module, fit
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from lightning_lopt import LearnedOptimizerAdapter, ScheduleFreeAdamRule

OUT = Path(sys.argv[1])
AVERAGING = ScheduleFreeAdamRule(lr=0.1, warmup=0.0)


def named(module):
    """Shards by name, not the copies that a forward pass leaves."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    return dict(module.named_parameters())


def whole(x):
    return x.detach().full_tensor() if isinstance(x, DTensor) else x.detach().clone()


class Sharded(Module):
    """A module written for AdamW, with one layer left whole, a layer without gradients and a frozen one."""

    def __init__(self):
        super().__init__(lambda module: torch.optim.AdamW(module.parameters()))
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 3))
        self.unused = nn.Linear(3, 1)
        self.net[3].weight.requires_grad_(False)

    def configure_model(self):
        if self.trainer.world_size > 1:
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net, mesh=mesh, ignored_params=set(self.net[2].parameters()))
            fully_shard(self.unused, mesh=mesh)

    def validation_step(self, batch, batch_idx):
        return self.net(batch[0])

    def val_dataloader(self):
        return data()


def data(rank=None):
    """Batches of eight, or the half of each that is a rank's."""
    draws = torch.Generator().manual_seed(1)
    samples = [(torch.randn(5, generator=draws), torch.randint(3, (), generator=draws)) for _ in range(8 * BATCHES)]
    if rank is None:
        return DataLoader(samples, batch_size=8)
    return DataLoader([x for index, x in enumerate(samples) if index // 4 % 2 == rank], batch_size=4)


class Report(Callback):
    """Writes, on every rank, what the run has come to."""

    def __init__(self, name):
        self.name = name

    def on_train_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        params = named(pl_module)
        report = {
            "parameters": {name: whole(param) for name, param in params.items()},
            "state": {
                f"{name}.{key}": whole(value)
                for name, param in params.items()
                for key, value in optimizer.state.get(param, {}).items()
            },
            "shared": {key: value.clone() for key, value in optimizer.param_groups[0]["shared"].items()},
            "schedule": optimizer.param_groups[0].get("schedule"),
            "steps": (optimizer.steps_made, optimizer.skipped_steps, optimizer.total_steps),
        }
        torch.save(report, OUT / f"{self.name}-{trainer.global_rank}.pt")


class Watch(Callback):
    """Both versions of the parameters, whole, at the moment that a checkpoint is written."""

    def __init__(self, name):
        self.name = name

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        (optimizer,) = trainer.optimizers
        params = named(pl_module)
        apart, elsewhere = optimizer.trained_params(), optimizer.evaluation_params()
        versions = {
            "trained": {name: whole(apart.get(param, param)) for name, param in params.items()},
            "evaluation": {name: whole(elsewhere[param]) for name, param in params.items() if param in elsewhere},
        }
        torch.save(versions, OUT / f"{self.name}-{trainer.global_step}-{trainer.global_rank}.pt")


def sharded(name, rule, *, single, ckpt=None, save=False, epochs=2, end=None):
    """A fit on two ranks; with ``save`` it leaves ``<name>-step=<steps>.ckpt`` after each epoch."""
    callbacks = [Report(name)]
    if save:
        where = {"filename": f"{name}-{{step}}", "save_on_train_epoch_end": True}
        callbacks += [Watch(f"{name}-versions"), ModelCheckpoint(OUT, save_top_k=-1, every_n_epochs=1, **where)]
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=not single, process_group_backend="gloo")
    adapter = LearnedOptimizerAdapter(rule)
    settings = {
        "use_distributed_sampler": False,
        "callbacks": callbacks,
        "data": data(int(os.environ["RANK"])),
        "ckpt": ckpt,
        "epochs": epochs,
    }
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer = fit(Sharded(), adapter=adapter, devices=2, strategy=strategy, **settings)
        if end is not None:
            trainer.save_checkpoint(OUT / end)
    messages = [str(warning.message) for warning in seen if "evaluation weights of this rule" in str(warning.message)]
    torch.save(messages, OUT / f"{name}-warnings-{trainer.global_rank}.pt")


def averaging(kind):
    """Straight, resumed from the middle, and from the end, where the model is at the average."""
    single = kind == "single"
    sharded(kind, AVERAGING, single=single, save=True, end=f"{kind}-end.ckpt")
    sharded(f"{kind}-resumed", AVERAGING, single=single, ckpt=OUT / f"{kind}-step={BATCHES}.ckpt")
    sharded(f"{kind}-longer", AVERAGING, single=single, epochs=3)
    sharded(f"{kind}-further", AVERAGING, single=single, epochs=3, ckpt=OUT / f"{kind}-end.ckpt")


def base(kind):
    """The rule that ships; its horizon changes on the first resumption, which the second has to know."""
    single = kind == "single"
    sharded(f"base-{kind}", "base", single=single, save=True)
    early, late = (OUT / f"base-{kind}{part}-step={n}.ckpt" for part, n in (("", BATCHES), ("-through", 2 * BATCHES)))
    sharded(f"base-{kind}-through", "base", single=single, ckpt=early, save=True, epochs=3)
    sharded(f"base-{kind}-resumed", "base", single=single, ckpt=late, epochs=3)


def main(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for kind in ("single", "directory"):
        averaging(kind)
        base(kind)
    dist.destroy_process_group()


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return str(own.getsockname()[1])


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    torch.multiprocessing.start_processes(main, (free_port(),), nprocs=2, start_method="fork")
    fit(Sharded(), adapter=LearnedOptimizerAdapter(AVERAGING), callbacks=[Report("plain")], data=data())
    alone = OUT / f"single-step={BATCHES}.ckpt"
    fit(
        Sharded(),
        adapter=LearnedOptimizerAdapter(AVERAGING),
        callbacks=[Report("plain-resumed")],
        data=data(),
        ckpt=alone,
    )
