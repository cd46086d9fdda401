"""``lightning-lopt evaluate`` where a file cannot be written: one sentence, and nothing that was measured is lost."""

import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from lightning_lopt.cli import main
from lightning_lopt.evaluation import evaluate_command
from lightning_lopt.evaluation.baselines import add_entries
from lightning_lopt.evaluation.evaluator import Work
from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.evaluation.report import page
from lightning_lopt.evaluation.results import Results
from lightning_lopt.progress import Progress
from lightning_lopt.tasks import Quadratic

EVALUATE = ["evaluate", "base", "--suite", "tiny", "--against", "adam_default", "--seeds", "1", "--out", "out"]
PICTURE = b"\x89PNG" + bytes(10_000)


@pytest.fixture(autouse=True)
def _one_bowl(monkeypatch, tmp_path):
    """The suite ``tiny`` is one small problem, and files go to the test's folder."""
    bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 0.5])), 12, "quadratic")
    monkeypatch.setitem(evaluate_command.SUITES, "tiny", lambda sources: [bowl])
    monkeypatch.setattr(page, "_pictures", lambda results: {"profile": PICTURE})  # drawing takes seconds
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def disk(monkeypatch):
    """A function: the disk is full after so many files."""
    real = os.fsync

    def full_after(files):
        left = [files]

        def fsync(descriptor):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return full_after


def sentence(printed):
    """The error that was printed to standard error, which has to be one line, the last one."""
    assert printed.out == ""
    assert printed.err.count("lightning-lopt: ") == 1
    assert "Traceback" not in printed.err
    (last,) = [line for line in printed.err.splitlines() if line.startswith("lightning-lopt: ")]
    assert printed.err.endswith(f"{last}\n")
    return last


def test_a_disk_that_fills_up_costs_nothing_that_was_measured(tmp_path, monkeypatch, capsys, disk):
    out, jobs, original = tmp_path / "out", [], Work.measure
    monkeypatch.setattr(Work, "measure", lambda work, *job: jobs.append(job) or original(work, *job))
    disk(1)  # the measurement of base; neither the baseline nor its measurement
    with pytest.warns(UserWarning, match="baselines were computed but not stored"):
        assert main(EVALUATE) == 1
    said = sentence(capsys.readouterr())
    assert "No space left on device" in said
    assert "measurements so far are stored" in said
    assert jobs == [(0, "base"), (0, "adam_default")]
    disk(2)  # the baseline and costs; nothing of the report
    assert main(EVALUATE) == 1
    assert "results.json" in sentence(capsys.readouterr())
    disk(2)  # results and page
    assert main(EVALUATE) == 1
    assert ".png" in sentence(capsys.readouterr())
    assert Results.load(out / "results.json").problems[0].name == "bowl"
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "baselines.json",
        "measured",
        "report.html",
        "results.json",
    ]
    assert jobs == [(0, "base"), (0, "adam_default"), (0, "adam_default")]  # each as often as it was not kept
    disk(100)
    assert main(EVALUATE) == 0
    assert (out / "profile.png").read_bytes() == PICTURE
    assert len(jobs) == 3


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(EVALUATE) == 1
    assert "Permission denied" in sentence(capsys.readouterr())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate base --suite tiny --out {}", "--out"),
        ("evaluate base --suite tiny --baselines {}/kept.json", "--baselines"),
        ("compare base base@start --suite tiny --out {}", "--out"),
        ("baselines --suite tiny --out {}/all.json", "--out"),
        ("benchmark mlp --out {}", "--out"),
        ("assess mine.py:Model --total-steps 9 --json {}/all.json", "--json"),
    ],
)
def test_a_folder_that_nothing_can_be_written_to_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys, command, option
):
    """It is below a file, which holds for root, too."""
    (tmp_path / "file").write_text("mine")
    asked = []
    monkeypatch.setattr(Progress, "doing", lambda progress, what: asked.append(what))
    assert main(command.format("file/out").split()) == 1
    said = sentence(capsys.readouterr())
    assert said.startswith("lightning-lopt: nothing can be written to file/out (")
    assert said.endswith(f"); give another {option}.")
    assert asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="nobody may write to /proc of Linux")
def test_baselines_are_not_waited_for_where_they_cannot_be_stored():
    """Not a minute for a lock that cannot be made."""
    began = time.monotonic()
    with pytest.raises(OSError, match="/proc"):
        add_entries(Path("/proc/baselines.json"), [])
    assert time.monotonic() - began < 30


def test_a_file_where_the_folder_should_be(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(EVALUATE) == 1
    assert "out" in sentence(capsys.readouterr())
    assert (tmp_path / "out").read_text() == "mine"


def test_a_process_that_was_killed_is_one_sentence(monkeypatch, capsys):
    def die(work, *job):
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(Work, "measure", die)
    assert main(EVALUATE) == 1
    assert "was killed, or was out of memory" in sentence(capsys.readouterr())


def test_the_command_that_makes_baselines_ends_where_it_cannot_keep_them(tmp_path, capsys, disk):
    disk(0)
    command = ["baselines", "--suite", "tiny", "--optimizer", "adam_default", "--seeds", "1", "--out", "all.json"]
    with pytest.warns(UserWarning, match="baselines were computed but not stored"):
        assert main(command) == 1
    assert "all.json" in sentence(capsys.readouterr())
    (tmp_path / "all.json").write_text("{")
    assert main(command) == 2
    assert "is not a file of baselines" in sentence(capsys.readouterr())
