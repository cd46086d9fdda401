"""Past ``total_steps`` schedules keep their last value, and everything else goes on."""

import math

import pytest
import torch

from lightning_lopt import AdamRule, ResidualRule, SGDRule, StepContext
from lightning_lopt.rules.residual_parts.signals import LOSS_DECAYS, average_loss, shared_signals


def context(step, total=5):
    return StepContext(torch.tensor(float(step)), torch.tensor(float(total)), torch.tensor(2.0))


@pytest.mark.parametrize("step", [0, 3, 4, 5, 50])
def test_schedules_hold_their_last_value(step):
    held = min(step, 4)
    params, grads = {"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0])}
    rule = SGDRule(0.1, momentum=0.0, schedule="cosine")
    updates, _ = rule(params, grads, rule.init_state(params, {}), context(step))
    assert float(updates["a"].detach()) == pytest.approx(-0.1 * 0.5 * (1 + math.cos(math.pi * held / 5)))
    rule = ResidualRule()
    factor = float(rule.constants.schedule(context(step))[1].detach())
    assert factor == pytest.approx(min(1.0, (5 - held) / (5 - 0.25)), rel=1e-6)


def test_adam_and_cosine_equal_torch_with_the_schedule_held():
    ours, theirs = torch.tensor([1.0, -2.0]), torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    rule = AdamRule(0.05, schedule="cosine")
    state = rule.init_state({"a": ours}, {})
    adam = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 * (1 + math.cos(math.pi * min(step, 4) / 5)))
    for step in range(40):
        theirs.grad = 2 * theirs.detach() + 0.3
        adam.step()
        schedule.step()
        updates, state = rule({"a": ours}, {"a": 2 * ours + 0.3}, state, context(step))
        ours = (ours + updates["a"]).detach()
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


def test_a_constant_loss_is_constant_to_the_controller_also_past_the_horizon():
    averages = torch.zeros(len(LOSS_DECAYS))
    for step in range(40):
        averages = average_loss(averages, context(step))
        signals = shared_signals(averages, context(step))
        assert signals[0] == pytest.approx(min(step, 4) / 5)
        torch.testing.assert_close(signals[3:5], torch.zeros(2), rtol=0, atol=1e-5)
