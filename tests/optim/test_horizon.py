"""``total_steps``: what it may be, when it is read, and what happens past it."""

import copy
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule


class Seen(ResidualRule):
    """Remembers step and horizon of every call."""

    def __init__(self):
        super().__init__(controller=False)
        self.seen = []

    def at(self, shared, context):
        self.seen.append((int(context.step), int(context.total_steps)))
        return super().at(shared, context)


def optimizer_and_weight(total_steps, rule=None):
    weight = nn.Parameter(torch.ones(3))
    return LearnedOptimizer([weight], rule or Seen(), total_steps=total_steps), weight


def make_steps(optimizer, weight, steps, gradient=1.0):
    for _ in range(steps):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()


def make_and_record_steps(optimizer, weight, steps, track):
    for _ in range(steps):
        make_steps(optimizer, weight, 1)
        track.append(weight.detach().mean())


@pytest.mark.parametrize("total", [7, 7.0, np.int64(7), np.float32(7), torch.tensor(7)], ids=lambda x: type(x).__name__)
def test_any_whole_number(total):
    optimizer, _ = optimizer_and_weight(total)
    assert optimizer.total_steps == 7
    assert type(optimizer.total_steps) is int


@pytest.mark.parametrize("total", [0, -1, 2.5, float("inf"), float("nan"), "7", [7]], ids=str)
def test_anything_else_is_refused(total):
    with pytest.raises(ValueError, match="total_steps must be a whole number of at least 1, got"):
        optimizer_and_weight(total)
    optimizer, weight = optimizer_and_weight(lambda: total)
    with pytest.raises(ValueError, match="total_steps must be a whole number"):
        make_steps(optimizer, weight, 1)


def test_a_function_is_read_once_at_the_first_step():
    calls = []

    def total():
        calls.append(1)
        return 6

    optimizer, weight = optimizer_and_weight(total)
    assert optimizer.state_dict()["param_groups"][0]["total_steps"] is None
    optimizer.step()  # no gradient, so no step
    assert calls == []
    make_steps(optimizer, weight, 3)
    assert calls == [1]
    assert optimizer.rule.seen == [(0, 6), (1, 6), (2, 6)]
    assert optimizer.state_dict()["param_groups"][0]["total_steps"] == 6


def test_past_the_horizon_it_warns_once_and_goes_on():
    """The step count goes on; the last step sizes stay those of the last planned step."""
    optimizer, weight = optimizer_and_weight(3)
    track = []
    with pytest.warns(UserWarning, match=r"past its total_steps=3; it continues with its last step size\.") as record:
        make_and_record_steps(optimizer, weight, 7, track)
    sizes = [float(one - other) for one, other in pairwise(track)][1:]
    assert len(record) == 1
    assert record[0].filename == __file__
    assert optimizer.rule.seen == [(step, 3) for step in range(7)]
    assert sizes == pytest.approx([sizes[0]] * 5, rel=1e-2)  # weight decay acts on weights that change
    assert sizes[0] == pytest.approx(0.02 / 2.85, rel=0.005)  # one of 3 steps is left, of which 0.15 are warm-up


def test_exactly_the_planned_steps_do_not_warn_and_skipped_ones_do_not_count():
    optimizer, weight = optimizer_and_weight(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_steps(optimizer, weight, 2)
        make_steps(optimizer, weight, 4, gradient=float("nan"))
        make_steps(optimizer, weight, 1)
    assert (int(optimizer.param_groups[0]["step"]), optimizer.skipped_steps) == (3, 4)
    with pytest.warns(UserWarning, match="past its total_steps=3"):
        make_steps(optimizer, weight, 1)


def test_an_optimizer_that_resumes_past_its_horizon_warns_again():
    """Whoever resumes a run reads the output of that run, not of the one before."""
    optimizer, weight = optimizer_and_weight(3)
    with pytest.warns(UserWarning, match="past its"):
        make_steps(optimizer, weight, 5)
    resumed, other = optimizer_and_weight(None)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.warns(UserWarning, match="past its total_steps=3") as record:
        make_steps(resumed, other, 3)
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(resumed.state_dict())
        make_steps(optimizer, weight, 1)


def test_rules_without_a_horizon_need_none():
    optimizer, weight = optimizer_and_weight(None, AdamRule())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_steps(optimizer, weight, 3)
    optimizer, weight = optimizer_and_weight(None)
    with pytest.raises(ValueError, match=r"needs the planned number of steps.*LearnedOptimizerAdapter\(\)"):
        make_steps(optimizer, weight, 1)
    optimizer.total_steps = 4
    make_steps(optimizer, weight, 1)
