"""The script that asks what is left to gain beside calibration, on a run of a few steps."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "research" / "headroom.py"


def test_whole_runs_and_pilots(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("headroom", SCRIPT)
    headroom = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headroom)
    names = list(headroom.variants(headroom.load_rule("base")))
    whole, pilots = headroom.measure("mlp", 0, 30, [2], 1)
    assert whole.shape == (len(names),)
    assert pilots[2].shape == (1, len(names))
    halved, doubled = (float(whole[names.index(f"step_size {label}")]) for label in ("/2", "x2"))
    assert halved > 0.1 > abs(doubled)  # so short a run wants long steps, as long as they are or a little longer
