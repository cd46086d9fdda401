"""Settings that must make no difference, to the last bit, and one that must make little: 64 bits instead of 32."""

import pytest
import torch
from matrix_cells import STEPS, Cell
from matrix_fits import run
from matrix_networks import CLIP
from matrix_plain_loop import expected

EVERY_WAY = [Cell(optimizer, loop=loop) for optimizer in ("own", "swap") for loop in ("automatic", "manual")]


def ends(*results):
    """Asserts that results are equal in parameters and losses, bit for bit."""
    first = results[0]
    assert "error" not in first
    for other in results[1:]:
        assert other["losses"] == first["losses"]
        assert all(torch.equal(value, other["end"][name]) for name, value in first["end"].items())


def test_own_and_swap_automatic_and_manual_are_one_run():
    ends(*(run(cell) for cell in EVERY_WAY))


@pytest.mark.parametrize("kind", ["norm", "value"])
@pytest.mark.parametrize("loop", ["automatic", "manual"])
def test_a_limit_that_is_never_reached_clips_nothing(kind, loop, monkeypatch):
    monkeypatch.setitem(CLIP, kind, 1e6)
    ends(run(Cell(loop=loop, clip=kind)), run(Cell(loop=loop)))


@pytest.mark.parametrize("loop", ["automatic", "manual"])
def test_a_constant_schedule_is_none(loop, monkeypatch):
    def constant(cell, optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    monkeypatch.setattr("matrix_networks.scheduler_of", constant)
    ends(run(Cell(loop=loop, schedule="step")), run(Cell(loop=loop)))


def test_double_precision_is_close_to_single():
    single, double = expected(Cell()), expected(Cell(precision="64-true"))
    assert len(single.losses) == STEPS
    assert single.losses == pytest.approx(double.losses, rel=1e-4)
