"""A file system that is really full, at any byte of what is written to it, or read-only."""

import shutil

import lightning.pytorch as L
import pytest
import torch
from killing import drafts
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lopt import PES, AdamRule, MetaTrainer, ResidualRule, TaskDataModule, load_rule, save_rule
from lightning_lopt.cli import main
from lightning_lopt.evaluation import evaluate_command
from lightning_lopt.evaluation.baselines import Baselines, add_entries, read_entries
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.results import Results
from lightning_lopt.io import RuleFileError
from lightning_lopt.meta.checkpoint_io import AtomicCheckpointIO
from lightning_lopt.tasks import Quadratic, QuadraticFamily

pytestmark = pytest.mark.slow
PAGE = 4096


def bowl():
    return Problem("bowl", Quadratic(torch.tensor([1.0, 0.5])), 12, "quadratic")


def attempt(expected, function, *arguments):
    """Message of the error of the class ``expected`` that a call raises, ``None`` without one."""
    try:
        function(*arguments)
    except expected as error:
        return str(error)
    return None


@pytest.mark.parametrize("exists", [True, False], ids=["old-folder", "new-folder"])
def test_rule(exists, small_disk):
    """A rule of some 70 KiB: tried with room for so many pages more each time, until it fits."""
    folder, failed = small_disk.folder / "rule", 0
    if exists:
        save_rule(AdamRule(), folder)
    for pages in range(200):
        small_disk.leave(pages * PAGE)
        error = attempt(RuleFileError, save_rule, ResidualRule(direction_hidden=128), folder)
        if error is None:
            break
        failed += 1
        assert "No space left on device" in error
        assert not drafts(folder, folder.parent)
        assert folder.exists() == exists
        if exists:
            assert isinstance(load_rule(folder), AdamRule)
    assert failed > 3
    assert isinstance(load_rule(folder), ResidualRule)


def test_checkpoint(small_disk):
    path, failed = small_disk.folder / "one.ckpt", 0
    AtomicCheckpointIO().save_checkpoint({"tensor": torch.zeros(10_000)}, path)
    for pages in range(200):
        small_disk.leave(pages * PAGE)
        error = attempt(OSError, AtomicCheckpointIO().save_checkpoint, {"tensor": torch.ones(40_000)}, path)
        if error is None:
            break
        failed += 1
        assert "No space left on device" in error
        assert "one.ckpt" in error
        assert not drafts(small_disk.folder)
        assert torch.equal(torch.load(path, weights_only=True)["tensor"], torch.zeros(10_000))
    assert failed > 3
    assert torch.equal(torch.load(path, weights_only=True)["tensor"], torch.ones(40_000))


def meta_train(folder, steps):
    torch.manual_seed(0)
    module = MetaTrainer(ResidualRule(), PES(4, pairs=2), groups=2, horizons=(4, 20), lr=0.01)
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_last=True, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=steps, callbacks=[checkpoints], **quiet)
    last = folder / "last.ckpt"
    trainer.fit(module, TaskDataModule(QuadraticFamily()), ckpt_path=last if last.exists() else None)


def test_meta_training_goes_on_once_there_is_room(small_disk, tmp_path):
    meta_train(tmp_path / "straight", 8)
    size = (tmp_path / "straight" / "last.ckpt").stat().st_size
    folder = small_disk.folder / "run"
    small_disk.leave((5 * size // PAGE) * PAGE)
    with pytest.raises(OSError, match="No space left on device"):
        meta_train(folder, 8)
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert 0 < last["global_step"] < 8
    small_disk.leave((9 * size // PAGE) * PAGE)
    meta_train(folder, 8)
    straight, full = (torch.load(place / "last.ckpt", weights_only=True) for place in (tmp_path / "straight", folder))
    assert full["global_step"] == 8
    for name, value in straight["state_dict"].items():
        assert torch.equal(value, full["state_dict"][name]), name


def test_report_and_its_measurements(small_disk, monkeypatch, capsys):
    monkeypatch.setitem(evaluate_command.SUITES, "tiny", lambda sources: [bowl()])
    out, failed = small_disk.folder / "out", 0
    command = ["evaluate", "base", "--suite", "tiny", "--against", "adam_default", "--seeds", "1", "--out", str(out)]
    for pages in range(0, 240, 12):
        small_disk.leave(pages * PAGE)
        status = main(command)
        printed = capsys.readouterr().err
        if status == 0:
            break
        failed += 1
        assert status == 1
        assert printed.count("lightning-lopt: ") == 1
        assert "No space left on device" in printed
        for picture in out.glob("*.png"):
            assert picture.read_bytes()[-8:-4] == b"IEND"
        for page in out.glob("*.html"):
            assert page.read_text().endswith("</html>\n")
        for results in out.glob("results.json"):
            assert Results.load(results)
        assert not drafts(out, out / "measured")
    assert failed > 3
    assert Results.load(out / "results.json").problems[0].name == "bowl"
    assert {path.name for path in out.glob("*.png")} == {"profile.png", "curves_01.png"}


def test_file_of_baselines(small_disk):
    path, known = small_disk.folder / "baselines.json", Baselines(seeds=1, shipped=False)
    for horizon in (10, 11):
        known(Problem("bowl", bowl().task, horizon), "adam_default")
    first, second = known.entries
    add_entries(path, [first])
    small_disk.leave(0)
    with pytest.raises(OSError, match="No space left on device"):
        add_entries(path, [second])
    assert [entry.key for entry in read_entries(path)] == [first.key]
    small_disk.leave(16 * PAGE)
    add_entries(path, [second])
    assert [entry.key for entry in read_entries(path)] == [first.key, second.key]


def test_read_only(small_disk, monkeypatch, capsys):
    monkeypatch.setitem(evaluate_command.SUITES, "tiny", lambda sources: [bowl()])
    folder = save_rule(AdamRule(), small_disk.folder / "rule")
    shutil.copytree(folder, small_disk.folder / ".saving-0123456789abcdef0123456789abcdef")
    assert small_disk.mount("remount", "ro")
    with pytest.raises(RuleFileError, match=r"could not be written \(.*Read-only file system"):
        save_rule(ResidualRule(), folder)
    assert isinstance(load_rule(folder), AdamRule)
    command = ["evaluate", str(folder), "--suite", "tiny", "--against", "adam_default", "--seeds", "1"]
    assert main([*command, "--out", str(small_disk.folder / "out")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("lightning-lopt: ") == 1
    assert "Read-only file system" in printed
