"""Steps to come of an optimizer that steps when its module likes, against counting them."""

import math

import pytest

from lightning_lopt.callbacks.horizon import FitProgress, paced_steps_left
from lightning_lopt.callbacks.pace import Pace

BATCHES, EPOCHS = 10, 4

PATTERNS = {  # batch of the epoch, batch of the fit -> steps
    "each batch": lambda here, ever: 1,
    "three a batch": lambda here, ever: 3,
    "every fourth, anew in each epoch": lambda here, ever: int(here % 4 == 0),
    "every fourth, and the last": lambda here, ever: int(here % 4 == 0 or here == BATCHES),
    "every fifth, across epochs": lambda here, ever: int(ever % 5 == 0),
    "once an epoch": lambda here, ever: int(here == BATCHES),
    "every twentieth": lambda here, ever: int(ever % 20 == 0),
    "two every other batch": lambda here, ever: 2 * (here % 2),
}


def plans(pattern):
    """(batch of the fit, planned steps) at each step of a fit with this pattern, and the steps that it made."""
    pace, found = Pace(), []
    for epoch in range(EPOCHS):
        for here in range(1, BATCHES + 1):
            ever = epoch * BATCHES + here
            for _ in range(pattern(here, ever)):
                pace.stepped(ever)
                at = FitProgress(epoch, here - 1, False, BATCHES, EPOCHS - epoch - 1, math.inf)
                found.append((ever, pace.total + paced_steps_left(pace, [], at, ever)))
        pace.epoch_ended(BATCHES, complete=True)
    return found, pace.total


@pytest.mark.parametrize("name", PATTERNS)
def test_planned_is_made_from_the_second_epoch_on(name):
    found, made = plans(PATTERNS[name])
    assert all(planned == made for batch, planned in found if batch > BATCHES)


@pytest.mark.parametrize("name", ["each batch", "every fourth, anew in each epoch", "every fifth, across epochs"])
def test_planned_is_made_from_the_first_step_on(name):
    found, made = plans(PATTERNS[name])
    assert {planned for _, planned in found} == {made}


def test_several_steps_a_batch_are_known_after_the_first_batch():
    found, made = plans(PATTERNS["three a batch"])
    assert [planned for _, planned in found[:3]] == [40, 80, 120]
    assert {planned for _, planned in found[3:]} == {made}


@pytest.mark.parametrize("limit", [64, 65])
def test_a_limit_that_counts_the_steps_of_all(limit):
    paces, made, found = [Pace(), Pace()], 0, [[], []]
    batch = 0
    while made < limit:
        batch += 1
        for pace, other, planned in zip(paces, paces[::-1], found, strict=True):
            pace.stepped(batch)
            at = FitProgress(0, batch - 1, False, math.inf, math.inf, limit - made)
            planned.append(pace.total + paced_steps_left(pace, [other], at, batch))
            made += 1
    for pace, planned in zip(paces, found, strict=True):
        assert set(planned) == {pace.total}


def test_without_a_limit_nothing_is_planned():
    pace = Pace()
    pace.stepped(1)
    assert paced_steps_left(pace, [], FitProgress(0, 0, False, math.inf, math.inf, math.inf), 1) == math.inf
