"""The example of MetaTraining runs, and its far model ends lower."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "meta_training.py"


def test_siren_ends_lower(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("meta_training_example", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "meta_training_example", example)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["", "--models", "siren", "--seeds", "1", "--steps", "700"])
    example.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("siren")]
    base, adapted = (float(number) for number in re.findall(r"\d+\.\d{5}", line))
    assert adapted < 0.8 * base
    assert "1 of 1" in line


def test_every_model_makes_a_step():
    spec = importlib.util.spec_from_file_location("meta_training_models", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    sys.modules["meta_training_models"] = example
    spec.loader.exec_module(example)
    for build, size in example.MODELS.values():
        net, examples = build()
        batch = example.Batches(examples, size, 1, 0)[0]
        loss = example.Model(net).training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(param.grad is not None for param in net.parameters())
