"""A horizon that changes in the middle of a run: the schedule goes on from where it stands and ends at the new one."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule


class Schedule(ResidualRule):
    """Remembers the factor of the schedule at each step."""

    def __init__(self):
        super().__init__(direction=False, controller=False)
        self.seen = []

    def at(self, shared, context):
        self.seen.append(float(self.constants.schedule(context)[0]))
        return super().at(shared, context)


def build(total_steps):
    weight = nn.Parameter(torch.ones(3))
    return LearnedOptimizer(
        [weight], Schedule(), total_steps=total_steps, compile=False
    ), weight  # each step calls `at` once


def steps(optimizer, weight, count):
    for _ in range(count):
        weight.grad = torch.ones(3)
        optimizer.step()
    return optimizer.rule.seen


@pytest.mark.parametrize("new", [60, 80, 200, 1000])
def test_no_jump_and_the_last_step_is_the_last(new):
    optimizer, weight = build(100)
    before = steps(optimizer, weight, 50)[-1]
    optimizer.set_horizon(new)
    seen = steps(optimizer, weight, new - 50)
    assert seen[50] == pytest.approx(before - 1 / 95)  # where the step would have been without the change
    assert seen[-1] == pytest.approx(1 / (0.95 * new))  # the last step of any run of this length
    falls = [earlier - later for earlier, later in pairwise(seen[50:])]
    assert min(falls) == pytest.approx(max(falls), rel=1e-3)


def test_the_same_horizon_and_one_before_the_first_step_change_nothing():
    plain, weight = build(20)
    expected = copy.copy(steps(plain, weight, 20))
    for first in (20, 7):
        optimizer, weight = build(first)
        optimizer.set_horizon(20)
        for _ in range(20):
            steps(optimizer, weight, 1)
            optimizer.set_horizon(20)
        assert optimizer.rule.seen == expected
        assert "schedule" not in optimizer.param_groups[0]


def test_twice_changed_and_resumed_is_as_not_stopped():
    def changed():
        optimizer, weight = build(100)
        steps(optimizer, weight, 20)
        optimizer.set_horizon(50)
        steps(optimizer, weight, 10)
        optimizer.set_horizon(80)
        return optimizer, weight

    optimizer, weight = changed()
    straight = steps(optimizer, weight, 10)[30:]
    stopped, _ = changed()
    resumed, weight = build(None)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert resumed.total_steps == 80
    assert steps(resumed, weight, 10) == straight


@pytest.mark.parametrize("total", [60, lambda: 60], ids=["number", "function"])
def test_a_checkpoint_with_another_horizon_goes_on_from_where_it_stood(total):
    first, weight = build(100)
    before = steps(first, weight, 50)[-1]
    resumed, weight = build(total)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert steps(resumed, weight, 1)[0] == pytest.approx(before, abs=0.02)
    assert steps(resumed, weight, 9)[-1] == pytest.approx(1 / (0.95 * 60))


def test_a_horizon_that_is_over_already_keeps_the_last_step_size():
    optimizer, weight = build(100)
    steps(optimizer, weight, 50)
    optimizer.set_horizon(30)
    with pytest.warns(UserWarning, match="past its total_steps=30"):
        seen = steps(optimizer, weight, 3)
    assert all(0 < size < 0.05 for size in seen[50:])


@pytest.mark.parametrize("total", [0, 2.5, None])
def test_refused(total):
    optimizer, _ = build(10)
    if total is None:
        optimizer.set_horizon(total)
        assert optimizer.total_steps is None
    else:
        with pytest.raises(ValueError, match="total_steps must be a whole number"):
            optimizer.set_horizon(total)


def test_the_horizon_is_exact_whatever_the_default_type():
    class Horizon(Schedule):
        def at(self, shared, context):
            self.horizon = context.total_steps
            return super().at(shared, context)

    weight = nn.Parameter(torch.ones(3))
    optimizer = LearnedOptimizer([weight], Horizon(), total_steps=100_001)
    torch.set_default_dtype(torch.float16)
    try:
        weight.grad = torch.ones(3, dtype=torch.float32)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert optimizer.rule.horizon.dtype == torch.float32
    assert float(optimizer.rule.horizon) == 100_001


@pytest.mark.parametrize("total", [30, lambda: 30], ids=["number", "function"])
def test_a_horizon_told_between_a_checkpoint_and_the_next_step_goes_on_from_that_of_the_checkpoint(total):
    first, weight = build(100)
    before = steps(first, weight, 50)[-1]
    resumed, weight = build(total)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.set_horizon(60)
    assert steps(resumed, weight, 1)[0] == pytest.approx(before - 1 / 95)
    assert steps(resumed, weight, 9)[-1] == pytest.approx(1 / (0.95 * 60))
