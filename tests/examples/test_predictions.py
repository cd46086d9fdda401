"""The examples that predict and then train, run as a user runs them, at tiny size."""

import argparse
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_lopt import Assessment

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--steps", "6", "--seeds", "1", "--budget", "1s"]


@pytest.fixture
def images(tmp_path):
    draws = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.uint8) % 10
    np.savez(tmp_path / "images.npz", images=draws.integers(256, size=(400, 12, 12), dtype=np.uint8), labels=labels)
    return str(tmp_path / "images.npz")


def run(folder, script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / script), *TINY, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("script", [pytest.param("mnist.py", marks=pytest.mark.slow), "out_of_distribution.py"])
def test_prediction_and_outcome(script, images, tmp_path):
    done = run(tmp_path, script, *(["--data", images, "--model", "cnn"] if script == "mnist.py" else []))
    assert done.returncode == 0, done.stderr[-2000:]
    predicted, happened = done.stdout.split("== what happened")
    assert "6 steps planned, rule base" in predicted
    assert "the assessment took" in predicted
    for name in ("LearnedOptimizer, nothing tuned", "Adam, PyTorch's default", "AdamW, best of 7 rates + cosine (lr="):
        assert name in happened
    verdict = happened.split('Predicted: "')[1].split('"')[0]
    assert verdict.lower() in predicted.lower()
    assert "the learned optimizer" in happened
    assert done.stderr.startswith("loading PyTorch and Lightning\nassess [00:00]\n")
    assert "training: AdamW, best of 7 rates + cosine (lr=0.1), seed 0 9/9 runs" in done.stderr
    assert (tmp_path / script.replace(".py", ".png")).stat().st_size > 10_000


def test_the_loss_is_one(monkeypatch):
    """Far behind AdamW at the rate that the sweep finds, in training and in validation; one seed, as shipped."""
    monkeypatch.syspath_prepend(EXAMPLES)
    shared, module = importlib.import_module("side_by_side"), importlib.import_module("out_of_distribution")
    data, given = module.load(standardise=False), argparse.Namespace(steps=150)
    base, adamw = shared.Result("base"), shared.Result("AdamW")
    for result, optimizer in ((base, {"rule": "base"}), (adamw, {"lr": 0.1})):
        shared.fit(result, lambda: module.Regressor(10), data, given, 0, **optimizer)
    assert base.train[0] > 1.5 * adamw.train[0]
    assert base.valid[0] > 1.3 * adamw.valid[0]


def test_digits_are_trained_three_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--steps", "3"])
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.INFO)  # put back afterwards
    importlib.import_module("train_digits").main()
    printed = capsys.readouterr()
    assert printed.out.startswith("Training 9 networks for 3 steps each on 1,438 images of digits: with base, ")
    shown = [line for line in printed.err.splitlines() if line.startswith("training")]
    assert shown[0] == "training 0/27 steps [00:00<?]"
    assert "27/27 steps" in shown[-1]
    assert (tmp_path / "train_digits.png").stat().st_size > 10_000


def test_without_torchvision_it_says_what_to_do(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # importing it raises ImportError
    module = importlib.import_module("mnist")
    with pytest.raises(SystemExit, match="needs torchvision, which is not installed; install it, or give --data"):
        module.load("mnist")
    assert module.load("digits").name == "digits"


def test_prediction_and_outcome_are_compared_by_seed():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from side_by_side import Result, comparison
    finally:
        sys.path.remove(str(EXAMPLES))
    found = Assessment("don't", [], {})
    learned, tuned = Result("a", [2.0], [2.0, 3.0, 1.0]), Result("b", [1.0], [1.0, 2.0, float("nan")])
    said = comparison(found, learned, tuned)
    assert said.startswith('Predicted: "don\'t". What happened: the learned optimizer lost to tuned AdamW')
    assert "1.50 times AdamW's (median of 3 seeds, lower with 1 of them), its training loss 2.00 times." in said
