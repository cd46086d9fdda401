"""All the ways in which a loss reaches a step."""

import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, RNNMLPRule, load_rule
from lightning_lopt.rules.base import UpdateRule


class Recorder(UpdateRule):
    """Remembers the loss of each step; steps nowhere."""

    reads_loss = True
    needs = True

    def __init__(self, needs=True):
        super().__init__()
        self.seen, self.needs = [], needs

    @property
    def needs_loss(self):
        return self.needs

    @property
    def config(self):
        return {}

    def init_tensor(self, param, role):
        return {"count": torch.zeros(())}

    def step(self, inputs, controls, at):
        self.seen.append(None if at.loss is None else float(at.loss))
        return torch.zeros_like(inputs.param), dict(inputs.state)


def build(**options):
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    return LearnedOptimizer([weight], Recorder(**options))


WAYS = {
    "step(loss=loss)": lambda optimizer, loss: optimizer.step(loss=loss),
    "step(loss)": lambda optimizer, loss: optimizer.step(loss),
    "step(float)": lambda optimizer, loss: optimizer.step(float(loss)),
    "step(lambda: loss)": lambda optimizer, loss: optimizer.step(lambda: loss),
    "set_loss": lambda optimizer, loss: (optimizer.set_loss(loss), optimizer.step()),
    "set_loss through a scaler": lambda optimizer, loss: (
        optimizer.set_loss(loss),
        torch.amp.GradScaler("cpu", enabled=False).step(optimizer),
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_loss_reaches_the_rule(way):
    optimizer = build()
    for loss in (1.5, 0.5):
        way(optimizer, torch.tensor(loss, requires_grad=True))
    assert optimizer.rule.seen == [1.5, 0.5]


def test_the_order_in_which_losses_win():
    optimizer = build()
    optimizer.signals.loss = torch.tensor(2.0)
    optimizer.set_loss(3.0)
    optimizer.step(lambda: torch.tensor(1.0), loss=4.0)
    optimizer.signals.loss = torch.tensor(2.0)
    optimizer.set_loss(3.0)
    optimizer.step(lambda: torch.tensor(1.0))
    optimizer.step(lambda: torch.tensor(1.0))
    assert optimizer.rule.seen == [4.0, 3.0, 1.0]


def test_a_loss_of_the_user_is_reduced_over_ranks_and_that_of_the_adapter_is_not():
    optimizer = build()
    optimizer.signals.reduce = lambda loss: loss * 10
    optimizer.set_loss(1.0)
    optimizer.step()
    optimizer.step(2.0)
    optimizer.signals.loss = torch.tensor(3.0)
    optimizer.step()
    assert optimizer.rule.seen == [10.0, 20.0, 3.0]


@pytest.mark.parametrize("loss", ["much", object(), [1.0, "a"]], ids=["words", "object", "list"])
def test_what_is_no_number_is_named(loss):
    with pytest.raises(TypeError, match=r"the loss must be a number or a tensor of one entry, got a \w+; call step"):
        build().step(loss)


def test_a_rule_that_needs_none_warns_once_and_goes_on():
    optimizer = build(needs=False)
    with pytest.warns(
        UserWarning, match="reads the loss, but none arrived, so training continues without it"
    ) as record:
        optimizer.step()
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.rule.seen == [None, None]


def test_a_rule_that_needs_one_says_so_under_the_name_that_the_user_typed():
    with pytest.raises(ValueError, match=r"rule '' reads the loss, but none arrived; call step\(loss\), .*set_loss"):
        build().step()
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"rule 'base' needs the planned number of steps"):
        LearnedOptimizer([weight], "base").step(1.0)


def test_a_validation_loss_may_come_before_the_first_step():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = LearnedOptimizer([weight], RNNMLPRule(), total_steps=5)
    optimizer.validated(0.5)
    optimizer.step(1.0)
    assert optimizer.steps_made == 1


def test_base_is_named_base():
    weight = nn.Parameter(torch.ones(2))
    assert LearnedOptimizer([weight]).rule_label == "base"
    assert LearnedOptimizer([weight], load_rule("base")).rule_label == "residual"
