"""In somebody's LightningCLI: the optimizer and the adapter by class path, arguments from the command line."""

import lightning.pytorch as L
import pytest
import torch
from small_fits import BATCHES, Module, loader

from lightning_lopt import LearnedOptimizer
from lightning_lopt.optim.rates import multiplier

pytest.importorskip("jsonargparse")

FIT = [
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
ADAPTER = "lightning_lopt.LearnedOptimizerAdapter"


class Plain(Module):
    """Without a ``configure_optimizers`` of its own, so that the command line may choose."""

    def __init__(self):
        super().__init__()

    configure_optimizers = L.LightningModule.configure_optimizers


class Digits(L.LightningDataModule):
    def train_dataloader(self):
        return loader()


@pytest.fixture
def run(monkeypatch):
    """Fits with the given command line and returns the LightningCLI."""

    def run(*arguments):
        from lightning.pytorch.cli import LightningCLI

        monkeypatch.setattr("sys.argv", ["fit.py", *FIT, *arguments])
        cli = LightningCLI(Plain, Digits, run=False, save_config_callback=None, seed_everything_default=False)
        cli.trainer.fit(cli.model, cli.datamodule)
        return cli

    return run


def test_optimizer_and_adapter_by_class_path(run):
    cli = run(
        "--optimizer=lightning_lopt.LearnedOptimizer",
        "--optimizer.lr=0.5",
        "--optimizer.rule=base",
        f"--trainer.callbacks+={ADAPTER}",
    )
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, LearnedOptimizer)
    assert (optimizer.total_steps, int(optimizer.param_groups[0]["step"])) == (BATCHES, BATCHES)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_optimizer_alone_with_total_steps_and_scheduler(run):
    cli = run(
        "--optimizer=lightning_lopt.LearnedOptimizer",
        "--optimizer.total_steps=9",
        "--lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
        "--lr_scheduler.gamma=0.5",
    )
    (optimizer,) = cli.trainer.optimizers
    assert optimizer.total_steps == 9
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_adapter_swaps_the_optimizer_of_the_command_line(run):
    """And leaves the command line's ``configure_optimizers`` in place, for a second fit."""
    callback = f'{{"class_path": "{ADAPTER}", "init_args": {{"rule": "base", "lr": 0.25}}}}'
    cli = run("--optimizer=torch.optim.AdamW", "--optimizer.lr=0.001", f"--trainer.callbacks+={callback}")
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, LearnedOptimizer)
    assert multiplier(optimizer.param_groups[0]) == 0.25
    assert isinstance(cli.model.configure_optimizers(), torch.optim.AdamW)
