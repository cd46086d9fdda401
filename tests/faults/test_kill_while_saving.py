"""kill -9 at 20 moments while a rule, a checkpoint or the file of baselines is written."""

import itertools
import math
import time
from dataclasses import replace

import lightning.pytorch as L
import pytest
import torch
from killing import MOMENTS, drafts, kill_at_moments
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter, ResidualRule, load_rule, save_rule
from lightning_lopt.evaluation.baselines import Baselines, add_entries, read_entries
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.meta.checkpoint_io import AtomicCheckpointIO
from lightning_lopt.tasks import Quadratic

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def save_rules(folder, begun):
    for number in itertools.count():
        save_rule(AdamRule(10.0 ** -(number % 9)) if number % 2 else ResidualRule(direction_hidden=64), folder)
        begun.set()


@pytest.mark.parametrize("exists", [True, False], ids=["old-folder", "new-folder"])
def test_rule(exists, tmp_path):
    left = 0
    for number in kill_at_moments(save_rules, tmp_path / "place" / "rule"):
        folder = tmp_path / "place" / "rule"
        rule = load_rule(folder)
        if isinstance(rule, AdamRule):  # weights and config are of the same rule
            assert rule.log_lr.item() == pytest.approx(math.log(rule.config["lr"]))
        left += len(drafts(folder, folder.parent))
        save_rule(rule, folder)
        assert not drafts(folder, folder.parent)
        if not exists:
            folder.rename(tmp_path / f"{number}")
    assert left > 0  # so some kills came in the middle


def save_checkpoints(path, begun):
    for number in itertools.count():
        AtomicCheckpointIO().save_checkpoint({"number": number, "tensor": torch.full((10**6,), number)}, path)
        begun.set()


def test_checkpoint(tmp_path):
    path, left = tmp_path / "one.ckpt", 0
    for _ in kill_at_moments(save_checkpoints, path):
        checkpoint = torch.load(path, weights_only=True)
        assert torch.equal(checkpoint["tensor"], torch.full((10**6,), checkpoint["number"]))
        left += len(drafts(tmp_path))
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
        assert [file.name for file in tmp_path.iterdir()] == ["one.ckpt"]
    assert left > 0


def add_baselines(path, entry, run, begun):
    for number in itertools.count():
        add_entries(path, [replace(entry, key=f"{run}-{number}")])
        with open(path.with_suffix(".done"), "a") as file:
            print(f"{run}-{number}", file=file, flush=True)
        begun.set()


def test_file_of_baselines(tmp_path):
    path, known = tmp_path / "baselines.json", Baselines(seeds=1, shipped=False)
    known(Problem("bowl", Quadratic(torch.tensor([1.0, 2.0])), 10), "adam_default")
    for run in range(MOMENTS):
        for _ in kill_at_moments(add_baselines, path, known.entries[0], run, moments=1, seed=run):
            kept = {entry.key for entry in read_entries(path)}
            assert {*path.with_suffix(".done").read_text().split()} <= kept
            began = time.monotonic()
            add_entries(path, [replace(known.entries[0], key=f"{run}-after")])
            assert time.monotonic() - began < 5  # the lock died with the process
            assert not drafts(tmp_path)


class Model(L.LightningModule):
    """Trained on one batch over and over, so that it does not matter where in an epoch a run goes on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return LearnedOptimizer(self)


class Begun(Callback):
    def __init__(self, event=None):
        self.event = event

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.event is not None:
            self.event.set()


def fit(folder, steps, begun=None):
    draws = torch.Generator().manual_seed(1)
    batch = [(torch.randn(5, generator=draws), torch.randint(3, (), generator=draws)) for _ in range(4)]
    torch.manual_seed(0)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=steps, callbacks=[LearnedOptimizerAdapter(), Begun(begun), checkpoints], **quiet)
    last = folder / "last.ckpt"
    trainer.fit(Model(), DataLoader(batch, batch_size=4), ckpt_path=last if last.exists() else None)


def test_fit_with_a_learned_optimizer(tmp_path):
    """The end is that of a run that nobody has killed, bit for bit."""
    steps = 500
    fit(tmp_path / "straight", steps)
    (tmp_path / "killed").mkdir()
    made = [0]
    for _ in kill_at_moments(fit, tmp_path / "killed", steps, longest=0.3):
        if (tmp_path / "killed" / "last.ckpt").exists():
            made.append(torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"])
    assert made == sorted(made)
    assert 0 < made[-1] < steps  # so kills came in the middle, and cost no more than what came after a checkpoint
    fit(tmp_path / "killed", steps)
    straight, killed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "killed"))
    assert killed["global_step"] == steps
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, killed["state_dict"][name]), name
