"""The example of OnlineMetaTraining runs, and its far model ends lower."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "meta_training.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("meta_training_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["meta_training_example"] = module
    spec.loader.exec_module(module)
    return module


def test_without_calibration_the_constants_are_the_same(example):
    plain, rule = example.uncalibrated("base"), example.load_rule("base")
    assert plain.calibration is None
    assert not plain.reads_loss
    for name, value in plain.named_parameters():
        assert value.equal(rule.get_parameter(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--validation"], marks=pytest.mark.slow)], ids=["", "validation"]
)
def test_a_line_for_each_model(example, monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", ["", "--models", "mlp", "--seeds", "1", "--steps", "300", *options])
    example.main()
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if line.startswith("mlp")]
    assert "training 0/2 runs" in printed.err
    assert "OnlineMetaTraining 2/2 runs" in printed.err
    assert "1 of 1" in line  # too short to be anything but handed back
    assert line.endswith("%")
    assert ("nan" in line) == (not options)


def test_every_model_makes_a_step(example):
    for build, size in example.MODELS.values():
        net, examples = build()
        batch = example.Batches(examples, size, 1, 0)[0]
        loss = example.Model(net).training_step(batch, 0)
        loss.backward()
        assert loss.isfinite()
        assert all(param.grad is not None for param in net.parameters())
