"""The examples that predict and then train, run as a user runs them, at tiny size."""

import importlib
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


@pytest.mark.parametrize("script", [pytest.param("mnist.py", marks=pytest.mark.slow), "out_of_distribution.py"])
def test_prediction_and_outcome(script, images, tmp_path):
    done = run(tmp_path, script, *(["--data", images, "--model", "cnn"] if script == "mnist.py" else []))
    assert done.returncode == 0, done.stderr[-2000:]
    predicted, happened = done.stdout.split("== what happened")
    assert "6 steps planned, rule base" in predicted
    assert "this took" in predicted
    for name in ("LearnedOptimizer, nothing tuned", "Adam, PyTorch's default", "AdamW, best of 7 rates + cosine (lr="):
        assert name in happened
    verdict = happened.split('Predicted: "')[1].split('"')[0]
    assert verdict.lower() in predicted.lower()
    assert "the learned optimizer" in happened
    assert (tmp_path / script.replace(".py", ".png")).stat().st_size > 10_000


def test_without_data_it_says_what_to_do(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # importing it raises ImportError
    module = importlib.import_module("mnist")
    with pytest.raises(SystemExit, match=r"give --data FILE\.npz"):
        module.load(None)


def test_prediction_and_outcome_are_compared_by_seed():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from side_by_side import Result, comparison
    finally:
        sys.path.remove(str(EXAMPLES))
    found = Assessment("don't", [], {})
    learned, tuned = Result("a", valid=[2.0, 3.0, 1.0]), Result("b", valid=[1.0, 2.0, float("nan")])
    said = comparison(found, learned, tuned)
    assert said.startswith('Predicted: "don\'t". What happened: the learned optimizer lost to tuned AdamW')
    assert "1.50 times AdamW's (median of 3 seeds, lower with 1 of them)" in said
