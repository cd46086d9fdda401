"""Kills at any moment cost the work since the last checkpoint at most, and leave no broken one."""

import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_lopt import PES, MetaTrainer, ResidualRule, TaskDataModule
from lightning_lopt.meta.checkpoint_io import AtomicCheckpointIO
from lightning_lopt.tasks import QuadraticFamily

EVERY = 2
pytestmark = pytest.mark.usefixtures("one_thread")


class Progress(Callback):
    """Tells on a file how many outer steps have been made."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.path.write_text(str(trainer.global_step))


def train(folder, steps, *callbacks, **settings):
    torch.manual_seed(0)
    module = MetaTrainer(ResidualRule(), PES(4, pairs=2), groups=2, horizons=(4, 20), lr=0.01)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=EVERY, save_last=True)
    trainer = L.Trainer(
        max_steps=steps,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, checkpoints],
        **settings,
    )
    last = folder / "last.ckpt"
    trainer.fit(module, TaskDataModule(QuadraticFamily()), ckpt_path=last if last.exists() else None)


def kill_at_random(folder, kills, steps):
    """Train in a process that is killed after random times, until it comes to its end; the number of kills."""
    moments, done, progress = random.Random(0), 0, folder / "progress"
    while True:
        progress.unlink(missing_ok=True)
        process = get_context("fork").Process(target=train, args=(folder, steps, Progress(progress)))
        process.start()
        deadline = time.monotonic() + 60
        while done < kills and process.is_alive() and not progress.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.join(moments.uniform(0.0, 0.5) if done < kills else 60)
        if not process.is_alive():
            assert process.exitcode == 0
            return done
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        done += 1
        made = int(progress.read_text() or 0)
        for path in folder.glob("*.ckpt"):
            torch.load(path, weights_only=True)  # none is broken
        saved = torch.load(folder / "last.ckpt", weights_only=True)["global_step"] if made > EVERY else 0
        assert saved >= made - EVERY


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(3, 60), pytest.param(20, 400, marks=pytest.mark.slow)], ids=["3", "20"])
def test_random_kills(tmp_path, kills, steps):
    train(tmp_path / "straight", steps)
    (tmp_path / "killed").mkdir()
    assert kill_at_random(tmp_path / "killed", kills, steps) == kills
    straight, killed = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "killed"))
    assert straight["global_step"] == killed["global_step"] == steps
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, killed["state_dict"][name]), name


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def save_and_die(path, when):
    """Kill the process in the middle of writing, or just before the rename."""

    class HalfWritten:
        def __reduce__(self):
            die()

    if when == "rename":
        os.replace = lambda *_: die()
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(10**6), "b": HalfWritten() if when == "write" else 0}, path)


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, when):
    path = tmp_path / "new" / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    process = get_context("fork").Process(target=save_and_die, args=(path, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert torch.load(path, weights_only=True) == {"a": 1}
    AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert torch.load(path, weights_only=True) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["one.ckpt"]


class DieAtStep(Callback):
    """One of two processes is killed in its third outer step."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 2 and trainer.global_rank == 1:
            die()


def test_a_process_that_dies_ends_the_run(tmp_path):
    began = time.monotonic()
    with pytest.raises(Exception, match=r"SIGKILL|[Cc]onnection closed|reset by peer"):
        train(tmp_path, 1000, DieAtStep(), devices=2, strategy="ddp_fork")
    assert time.monotonic() - began < 60
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    train(tmp_path, 4)  # on one process, from there
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_of_a_script(tmp_path):
    """Started as users start it: Lightning runs the script once more for the second process."""
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from test_kills import DieAtStep, train\n"
        "train(Path(sys.argv[3]), 1000, DieAtStep(), devices=2, strategy='ddp')\n"
    )
    (tmp_path / "script.py").write_text(script)
    here = os.path.dirname(os.path.abspath(__file__))
    arguments = [str(tmp_path / "script.py"), here, os.path.dirname(os.path.dirname(here)), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["global_step"] == 2
