"""``epochs``: what it may be, how it reaches the rule, and what a checkpoint keeps of it."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, ResidualRule


class EpochReader(ResidualRule):
    """Remembers the epochs of every call."""

    def __init__(self):
        super().__init__(controller=False)
        self.epochs_read = []

    def at(self, shared, context):
        self.epochs_read.append(None if context.epochs is None else float(context.epochs))
        return super().at(shared, context)


def trained_tensor():
    draws = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(32, 2, generator=draws) @ torch.randn(2, 32, generator=draws))


def make_steps(optimizer, weight, steps):
    for number in range(steps):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()


def test_the_rule_reads_the_epochs_of_the_optimizer():
    rule, weight = EpochReader(), trained_tensor()
    optimizer = LearnedOptimizer([weight], rule, total_steps=4)
    make_steps(optimizer, weight, 1)
    optimizer.epochs = 3
    make_steps(optimizer, weight, 1)
    assert rule.epochs_read == [None, 3.0]


@pytest.mark.parametrize("epochs", [0, -1.0, math.nan, math.inf, "3", True])
def test_what_is_no_number_of_epochs_is_refused(epochs):
    with pytest.raises(ValueError, match="epochs must be a finite number above 0, got"):
        LearnedOptimizer([trained_tensor()], total_steps=4, epochs=epochs)


def test_a_pretrained_tensor_moves_less_the_more_often_its_data_are_repeated():
    distances = []
    for epochs in (40.0, None, 3.0, 1.0):
        weight = trained_tensor()
        before = weight.detach().clone()
        make_steps(LearnedOptimizer([weight], "base", total_steps=20, epochs=epochs), weight, 20)
        distances.append(float((weight.detach() - before).norm()))
    assert distances[0] < 0.6 * distances[1] < 0.3 * distances[2]
    assert distances[2] < distances[3] < 3 * distances[2]


def test_a_resumed_run_is_the_run_without_a_stop_and_needs_not_be_told_again():
    weights = [trained_tensor() for _ in range(2)]
    through, first = (LearnedOptimizer([weight], "base", total_steps=30, epochs=2.5) for weight in weights)
    make_steps(through, weights[0], 20)
    make_steps(first, weights[1], 10)
    saved = copy.deepcopy(first.state_dict())
    second = LearnedOptimizer([weights[1]], "base")
    second.load_state_dict(saved)
    assert second.epochs == 2.5
    for number in range(10, 20):
        weights[1].grad = torch.randn(weights[1].shape, generator=torch.Generator().manual_seed(number))
        second.step()
    assert torch.equal(weights[0], weights[1])
    other = LearnedOptimizer([trained_tensor()], "base", epochs=7)
    other.load_state_dict(saved)
    assert other.epochs == 7.0  # the present one wins, as with total_steps


@pytest.mark.parametrize("epochs", [0.0, -2.0, math.nan, "many", [1.0]])
def test_damaged_epochs_of_a_checkpoint_are_refused(epochs):
    weight = trained_tensor()
    optimizer = LearnedOptimizer([weight], "base", total_steps=30, epochs=2.5)
    make_steps(optimizer, weight, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["epochs"] = epochs
    with pytest.raises(ValueError, match="its epochs is"):
        optimizer.load_state_dict(saved)
    assert optimizer.epochs == 2.5


def test_a_checkpoint_from_before_there_were_epochs_loads():
    weight = trained_tensor()
    optimizer = LearnedOptimizer([weight], "base", total_steps=30)
    make_steps(optimizer, weight, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["epochs"]
    optimizer.load_state_dict(saved)
    assert optimizer.epochs is None


def test_traced_steps_follow_epochs_that_are_set_later():
    ends = []
    for traces in (None, False):
        weight = trained_tensor()
        optimizer = LearnedOptimizer([weight], "base", total_steps=400, compile=traces)
        make_steps(optimizer, weight, 40)
        optimizer.epochs = 3.0
        make_steps(optimizer, weight, 20)
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)
