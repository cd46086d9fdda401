"""Settings that are right for other optimizers: a warning, or they work."""

import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, ResidualRule, SGDRule

Scheduler = torch.optim.lr_scheduler


def steps(optimizer, weight, count, schedule=None, lr=None):
    for index in range(count):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        if lr is not None:
            optimizer.param_groups[0]["lr"] = lr(index)
        if schedule is not None:
            schedule.step()


def weight():
    return nn.Parameter(torch.ones(2))


def test_a_rate_for_adamw_warns_at_once():
    with pytest.warns(UserWarning, match="lr=0.001 multiplies the steps of the learned optimizer") as record:
        optimizer = LearnedOptimizer([weight()], AdamRule(), lr=1e-3)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(optimizer, optimizer.param_groups[0]["params"][0], 30)


@pytest.mark.parametrize("lr", [0.0, 0.1, 1.0])
def test_rates_that_are_meant_do_not_warn(lr):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param = weight()
        steps(
            LearnedOptimizer([{"params": param}, {"params": weight(), "lr": 1e-3 * lr}], AdamRule(), lr=lr), param, 30
        )


def test_a_rate_that_is_written_into_the_groups_warns_when_it_stays_small():
    param = weight()
    optimizer = LearnedOptimizer([param], AdamRule())
    with pytest.warns(UserWarning, match="lr=0.01 multiplies"):
        steps(optimizer, param, 40, lr=lambda index: min(index + 1, 8) / 8 * 1e-2)


def test_a_warm_up_from_0_does_not_warn():
    param = weight()
    optimizer = LearnedOptimizer([param], AdamRule())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(optimizer, param, 150, Scheduler.LinearLR(optimizer, 0.001, 1.0, 100))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Scheduler.OneCycleLR, {"max_lr": 1.0, "total_steps": 9}),
        (Scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": 1.0}),
        (Scheduler.CosineAnnealingLR, {"T_max": 9}),
        (Scheduler.ReduceLROnPlateau, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_schedulers_with_their_defaults_work_and_scale_the_step(kind, options):
    """With SGD without momentum in closed form: each step is the rate at that time times 0.1."""
    param = weight()
    optimizer = LearnedOptimizer([param], SGDRule(0.1, momentum=0.0))
    schedule = kind(optimizer, **options)
    expected = param.detach().clone()
    for _ in range(8):
        expected -= 0.1 * optimizer.param_groups[0]["lr"]
        param.grad = torch.ones(2)
        optimizer.step()
        schedule.step(*([1.0] if kind is Scheduler.ReduceLROnPlateau else []))
    torch.testing.assert_close(param.detach(), expected)


def test_a_class_in_place_of_an_object_is_named():
    with pytest.raises(TypeError, match=r"got the class ResidualRule where a rule is needed; pass ResidualRule\(\)"):
        LearnedOptimizer([weight()], ResidualRule)


@pytest.mark.parametrize("device_type", ["cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [ResidualRule, AdamRule], ids=lambda rule: rule.__name__)
def test_a_step_inside_an_autocast_region_is_the_step_outside(device_type, dtype, rule):
    ends = []
    for enabled in (False, True):
        torch.manual_seed(0)
        built = rule()
        param = nn.Parameter(torch.randn(4, 6))
        optimizer = LearnedOptimizer([param], built, total_steps=9)
        for _ in range(3):
            param.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
            with torch.autocast(device_type, dtype=dtype, enabled=enabled):
                optimizer.step(1.0)
        ends.append(param.detach())
    assert torch.equal(*ends)
