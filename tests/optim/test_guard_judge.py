"""When a guard's judge leaves a rule, on sequences of readings whose noise is known."""

import math
import random

import pytest

from lightning_lopt.optim.guard_judge import MEMORY, Cause, Judge
from lightning_lopt.optim.guard_readings import Reading


def reading(loss, *, promise=-0.01, reference=0.02, length=0.01):
    return Reading(loss, 1.0, promise, reference, length, 1.0, 1.0)


def verdict(readings, total=1000, judge=None):
    """The cause, and after how many readings; ``(None, None)`` without one."""
    judge = judge or Judge()
    for number, one in enumerate(readings, 1):
        cause = judge.judge(one, number / total if total else None, total)
        if cause is not None:
            return cause, number
    return None, None


NOISE = {
    "none": lambda draw: 0.0,
    "normal": lambda draw: draw.gauss(0, 1),
    "heavy tails": lambda draw: draw.gauss(0, 1) / max(abs(draw.gauss(0, 1)), 0.02),
    "one-sided": lambda draw: draw.expovariate(1.0) ** 2,
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("decrease", [0.0, 0.3, 5.0])
def test_noise_alone_is_no_cause(noise, decrease):
    draw = random.Random(0)
    left = 0
    for _ in range(40):
        losses = [decrease * math.exp(-step / 50) + NOISE[noise](draw) for step in range(200)]
        left += verdict(map(reading, losses)) != (None, None)
    assert left <= {"heavy tails": 2, "one-sided": 2}.get(noise, 0)  # whose first losses say little of those to come


def test_a_loss_that_falls_and_jumps_now_and_then_is_no_cause():
    losses = [2 * math.exp(-step / 200) + 4 * (step % 100 in (60, 61, 62)) for step in range(1000)]
    assert verdict(map(reading, losses)) == (None, None)


def test_a_loss_above_where_it_began_diverges():
    growing = [2 + 0.1 * 1.4**step for step in range(100)]
    cause, number = verdict(map(reading, growing))
    assert cause == Cause.DIVERGED
    assert number <= 15
    steady = [2 - 0.01 * step for step in range(100)] + [2.2] * 20
    assert verdict(map(reading, steady)) == (Cause.DIVERGED, 106)  # the sixth of seven


@pytest.mark.parametrize("total", [None, 100, 1000])
def test_a_loss_that_gives_back_half_of_its_decrease_for_long_is_behind(total):
    falling = [2 - 0.01 * min(step, 100) for step in range(150)]
    patience = max(20, (total or 0) / 20)
    back = [*falling, *[1.6] * 300]
    assert verdict(map(reading, back), total) == (Cause.BEHIND, 150 + 4 + patience - 1)
    assert verdict(map(reading, [*falling, *[1.4] * 300]), total) == (None, None)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_a_constant_in_the_loss_moves_no_verdict(offset):
    draw = random.Random(1)
    losses = [2 - 0.01 * step + 0.1 * draw.gauss(0, 1) for step in range(150)] + [3 + draw.gauss(0, 1)] * 50
    expected = verdict(map(reading, losses))
    assert expected[0] == Cause.DIVERGED
    assert verdict(reading(loss + offset) for loss in losses) == expected


def test_small_steps_are_a_cause_before_the_schedule_ends_and_not_after():
    small = [reading(2.0, promise=-1e-6)] * 40
    assert verdict(small) == (Cause.FROZEN, 20)
    learning = [reading(2 - 0.002 * step) for step in range(700)]
    assert verdict([*learning, *[reading(0.6, promise=-1e-6)] * 300]) == (None, None)
    assert verdict([reading(2.0, promise=0.0, reference=0.0)] * 300) == (None, None)  # no gradient


def test_what_is_not_finite():
    good, nan = reading(1.0), math.nan
    assert verdict([good, reading(1.0, length=nan), good] * 20) == (None, None)
    assert verdict([good, *[reading(1.0, promise=nan, length=nan)] * 3]) == (Cause.BROKEN, 4)
    lost = [reading(nan, reference=nan)] * 10
    assert verdict(lost) == (None, None)  # before any step
    assert verdict([good, *lost]) == (Cause.LOST, 11)


def test_a_judge_remembers_all_that_it_knows():
    draw = random.Random(2)
    losses = [2 - 0.01 * step + 0.05 * draw.gauss(0, 1) for step in range(120)] + [1.7] * 80
    expected = verdict(map(reading, losses))
    for stop in (1, 5, 40, 130):
        first, second = Judge(), Judge()
        assert verdict(map(reading, losses[:stop]), judge=first) == (None, None)
        memory = first.memory()
        assert len(memory) == MEMORY
        second.load_memory(memory)
        cause, number = verdict(map(reading, losses[stop:]), judge=second)
        assert (cause, number + stop) == expected


def test_long_steps_are_a_cause_unless_the_loss_falls_as_they_promise():
    long = {"length": 0.5, "promise": -0.3}
    assert verdict([reading(2 - 0.01 * step, **long) for step in range(50)]) == (Cause.LONG, 7)
    assert verdict([reading(9 - 0.15 * step, **long) for step in range(50)]) == (None, None)
    assert verdict([reading(2 - 0.01 * step, promise=-0.3, length=0.15) for step in range(50)]) == (None, None)
