"""The figure of estimators: its exact values hold, and it is drawn."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "research" / "estimator_variance.py"


@pytest.fixture(scope="module")
def figure():
    spec = importlib.util.spec_from_file_location("estimator_variance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimator_variance"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("problem", ["bowl", "chaos"])
def test_exact_values_are_those_of_full_es(figure, problem):
    rule, task, sigma, exact = getattr(figure, problem)()
    mean, error, _ = figure.measure(figure.ESTIMATORS["FullES"](0, 512, sigma), rule, task, draws=8)
    assert abs(mean - exact) < 4 * error
    assert error < abs(exact)


def test_it_is_drawn(figure, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.setattr(figure, "TRUNCATIONS", (64,))
    monkeypatch.setattr(sys, "argv", ["", "--draws", "2", "--terms", "2", "--out", str(tmp_path / "figure.png")])
    figure.main()
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert "TruncatedBackprop, clip 0.1" in capsys.readouterr().out
