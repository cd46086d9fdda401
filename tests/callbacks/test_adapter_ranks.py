"""Two processes on CPU, each with its own half of the data: the ranks make the same step, to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_lopt

FITS = ["plain", "resumed", "accumulation", "swap", "manual", "long", "validated", "diverging", "without"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each rank wrote about each fit, by name of the fit."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_lopt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1)] for name in FITS}


def equal(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [name for name in FITS if name != "without"])
def test_ranks_agree(reports, name):
    one, other = reports[name]
    assert one["own_losses"] != other["own_losses"]
    assert one["seen"] == other["seen"]
    assert equal(one["parameters"], other["parameters"])
    assert equal(one["state"], other["state"])
    assert (one["steps"], one["skipped"]) == (other["steps"], other["skipped"])


@pytest.mark.parametrize("name", ["plain", "swap", "manual"])
def test_the_rule_sees_the_mean_over_the_ranks(reports, name):
    one, other = reports[name]
    means = [(x + y) / 2 for x, y in zip(one["own_losses"], other["own_losses"], strict=True)]
    assert one["seen"] == pytest.approx(means)
    assert one["total_steps"] == one["steps"] == 6


def test_windows_are_averaged_before_the_ranks(reports):
    """Three batches an epoch in windows of two, the last one short."""
    one, other = reports["accumulation"]
    means = [(x + y) / 2 for x, y in zip(one["own_losses"], other["own_losses"], strict=True)]
    expected = [(means[0] + means[1]) / 2, means[2], (means[3] + means[4]) / 2, means[5]]
    assert one["seen"] == pytest.approx(expected)


def test_a_validation_loss_of_one_rank_reaches_all(reports):
    first, second = (report["shared"]["validation"] for report in reports["validated"])
    assert torch.equal(first, second)
    assert first[:4].tolist() == [3.0, 3.0, 1.0, 3.0]  # their number, the last one, the lowest and the highest


def test_ranks_agree_after_forty_steps_of_base(reports):
    """Where one bit that differs would have grown: the whole of what is above holds, for many steps."""
    assert [report["steps"] for report in reports["long"]] == [42, 42]


def test_resume_is_no_stop(reports):
    assert equal(reports["plain"][0]["parameters"], reports["resumed"][0]["parameters"])
    assert equal(reports["plain"][1]["state"], reports["resumed"][1]["state"])


def test_a_loss_that_is_not_finite_on_one_rank_skips_the_step_on_all(reports):
    assert [(report["steps"], report["skipped"]) for report in reports["diverging"]] == [(4, 2), (4, 2)]


def test_without_an_adapter_ranks_drift_apart(reports):
    """So what is tested above does depend on the loss."""
    one, other = reports["without"]
    assert not equal(one["parameters"], other["parameters"])
