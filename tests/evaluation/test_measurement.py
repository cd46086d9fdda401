"""Measurements: windows, and JSON files and back."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lightning_lopt.evaluation.measurement import CHECKPOINTS, WINDOWS, Measurement, in_windows, window_ends


def measurement(horizon=250, seeds=3):
    draws = torch.Generator().manual_seed(0)
    valid = torch.rand(min(CHECKPOINTS, horizon), seeds, generator=draws)
    return Measurement(
        "adamw",
        horizon,
        torch.rand(min(WINDOWS, horizon), seeds, generator=draws),
        valid,
        torch.rand(seeds, generator=draws),
        1e-3,
        {"accuracy": 1 - valid},
    )


@pytest.mark.parametrize("horizon", [1, 2, 99, 100, 101, 250, 20_000])
def test_windows_cover_the_run_and_differ_by_at_most_one_step(horizon):
    ends = window_ends(horizon)
    lengths = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert ends[-1] == horizon
    assert len(ends) == min(horizon, WINDOWS)
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


def test_means_in_windows():
    assert torch.equal(in_windows(torch.arange(6.0), 3), torch.tensor([0.5, 2.5, 4.5]))


def test_losses_of_another_loop_become_windows_and_checkpoints():
    losses = torch.arange(400.0).reshape(200, 2)  # 200 steps with two seeds
    run = Measurement.of_losses(losses, losses + 0.5, optimizer="mine")
    assert (run.optimizer, run.horizon) == ("mine", 200)
    assert torch.equal(run.train, losses.reshape(100, 2, 2).mean(1))
    assert torch.equal(run.valid, losses[9::10] + 0.5)
    assert torch.equal(run.final_train, losses[-1])
    with pytest.raises(ValueError, match=r"the shape of train, \(200, 2\), got \(199, 2\)"):
        Measurement.of_losses(losses, losses[1:])


def test_json_and_back_keeps_six_digits_and_what_is_not_finite():
    before = measurement()
    before.train[3, 1] = math.inf
    after = Measurement.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    assert after.optimizer == before.optimizer
    assert after.learning_rate == before.learning_rate
    assert torch.isnan(after.train[3, 1])
    before.train[3, 1] = math.nan
    torch.testing.assert_close(after.train, before.train, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(after.metrics["accuracy"], before.metrics["accuracy"], rtol=1e-5, atol=0)
    assert after.to_json() == Measurement.from_json(after.to_json()).to_json()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train", None, "not a measurement"),
        ("train", [[1.0, 2.0]], "train must have shape"),
        ("valid", [[1.0], [1.0, 2.0]], "not a measurement"),
        ("final_train", ["a", "b", "c"], "not a measurement"),
        ("horizon", -3, "horizon must be a whole number"),
        ("horizon", True, "horizon must be a whole number"),
        ("metrics", {"accuracy": [[1.0]]}, "'accuracy' must have shape"),
        ("metrics", 3, "not a measurement"),
    ],
)
def test_what_is_no_measurement_is_refused(key, value, says):
    with pytest.raises(ValueError, match=says):
        Measurement.from_json(measurement().to_json() | {key: value})


def test_missing_entries_are_named():
    content = measurement().to_json()
    del content["valid"]
    with pytest.raises(ValueError, match="'valid' is missing"):
        Measurement.from_json(content)
