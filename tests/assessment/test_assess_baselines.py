"""Baselines by name in an assessment: the runs are those of the pilots, and the verdict does not read them."""

import time

import pytest
import torch
from assessed import STEPS, Data, Model

from lightning_lopt.assessment import assess
from lightning_lopt.assessment.named_baselines import baseline_pilots
from lightning_lopt.assessment.pilots import Level
from lightning_lopt.cli import main
from lightning_lopt.evaluation.torch_optimizers import PackagedOptimizer
from lightning_lopt.tasks import Quadratic

BOWL = Quadratic(torch.tensor([1.0, 2.0]), noise=0.1)


def level(horizon, seeds=2):
    return Level(horizon, {}, {"train": torch.ones(seeds), "valid": torch.ones(seeds)}, {}, 1.0, 0.0)


def pilots(levels, seconds, notes):
    until = time.perf_counter() + seconds
    return baseline_pilots(["sgd"], BOWL, levels, device=torch.device("cpu"), until=until, notes=notes)


def test_an_untuned_adamw_is_the_pilots_own():
    torch.manual_seed(0)
    found = assess(Model, Data(), total_steps=STEPS, budget=60.0, against=("adamw_1e-3", "schedule_free"))
    same, tuned = found.numbers["baselines"]
    last = found.numbers["pilots"][-1]
    assert (same["name"], same["horizon"], same["learning_rate"]) == ("adamw_1e-3", STEPS, None)
    assert same["rule"] == last["rule"]
    for split in ("train", "valid"):
        assert same["losses"][split] == pytest.approx(last["adamw"]["0.001"][split], rel=1e-3)
    assert tuned["learning_rate"] == 0.3  # the largest of the sweep: the targets are large
    assert f"adamw_1e-3 after {STEPS} steps: " in str(found)
    assert f"schedule_free at learning rate 0.3 after {STEPS} steps: " in str(found)


def test_the_longest_horizon_that_there_is_time_for():
    (pilot,) = pilots([level(3, seeds=1), level(10), level(20), level(10**9)], 60.0, [])
    assert pilot.horizon == 20
    assert pilot.losses["train"].shape == (2,)


def test_what_could_not_be_run_is_a_note(monkeypatch):
    notes = []
    assert not pilots([level(10)], 0.0, notes)
    monkeypatch.setattr(Quadratic, "gradient", lambda *_: 1 / 0)
    assert not pilots([level(10)], 60.0, notes)
    assert notes[0] == "there was no time for the baseline sgd"
    assert notes[1].startswith("the baseline sgd fails on this module (ZeroDivisionError")


def test_unknown_and_missing_ones_are_refused_first(monkeypatch, capsys):
    with pytest.raises(ValueError, match="there is no baseline 'lion'; use some of 'adamw', "):
        assess(Model, Data(), total_steps=STEPS, against=["lion"])
    monkeypatch.setattr(PackagedOptimizer, "installed_version", None)
    with pytest.raises(ImportError, match=r"Prodigy comes with the package prodigyopt, .*-e \"\.\[peers\]\""):
        assess(Model, Data(), total_steps=STEPS, against=["prodigy"])
    file = __file__.replace("test_assess_baselines", "assessed")
    assert main(["assess", f"{file}:Model", "--total-steps", "40", "--against", "prodigy"]) == 1
    assert "which is not installed; run pip install" in capsys.readouterr().err
