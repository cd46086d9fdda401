"""Steps that are not finite: skipped, counted, warned about, and an error when there is nothing else."""

import warnings

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer, load_rule
from lightning_lopt.optim.skips import END_IN_A_ROW, SkipWatch, not_finite

NAN = float("nan")


def optimizer_and_params(rule=None):
    params = {"first": nn.Parameter(torch.ones(3)), "second": nn.Parameter(torch.ones(2, 2))}
    return LearnedOptimizer(params.items(), rule or AdamRule(0.01), total_steps=1000), params


def step(optimizer, params, value=1.0, loss=1.0):
    for param in params.values():
        param.grad = torch.ones_like(param)
    params["second"].grad[0, 0] = value
    optimizer.step(loss)


def steps(optimizer, params, values):
    for value in values:
        step(optimizer, params, value)


@pytest.mark.parametrize("rule", ["base", AdamRule(0.01)], ids=str)
def test_a_number_inside_the_state_that_is_not_finite_reaches_no_parameter(rule):
    optimizer, params = optimizer_and_params(load_rule(rule) if isinstance(rule, str) else rule)
    for _ in range(3):
        step(optimizer, params)
    before = {name: param.detach().clone() for name, param in params.items()}
    state = optimizer.state[params["first"]]
    next(value for value in state.values() if value.ndim)[0] = NAN
    step(optimizer, params)
    assert optimizer.skipped_steps == 1
    assert optimizer.steps_made == 3
    assert torch.equal(before["first"], params["first"])
    assert all(param.isfinite().all() for param in params.values())
    assert all(value.isfinite().all() for value in optimizer.param_groups[0]["shared"].values())


def test_it_warns_when_skips_pile_up_and_names_the_tensors():
    optimizer, params = optimizer_and_params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer, params)
        for _ in range(4):
            step(optimizer, params, NAN)
        step(optimizer, params)
    with pytest.warns(UserWarning, match=r"9 of 11 steps were skipped, because gradients of 'second' were not") as seen:
        steps(optimizer, params, [NAN] * 8)
    assert [warning.filename for warning in seen] == [__file__]


def test_now_and_then_is_no_reason_to_warn_and_a_tenth_of_a_long_run_is():
    optimizer, params = optimizer_and_params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(200):
            step(optimizer, params, NAN if index % 20 == 0 else 1.0)
    with pytest.warns(UserWarning, match="steps were skipped"):
        steps(optimizer, params, [NAN, 1.0] * 30)


@pytest.mark.parametrize(
    ("how", "message"),
    [({"value": NAN}, "gradients of 'second' were not finite"), ({"loss": NAN}, "the loss was nan")],
    ids=["gradient", "loss"],
)
@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_it_ends_after_fifty_in_a_row_and_loses_nothing(how, message):
    optimizer, params = optimizer_and_params()
    step(optimizer, params)
    before = {name: param.detach().clone() for name, param in params.items()}
    for _ in range(END_IN_A_ROW - 1):
        step(optimizer, params, **how)
    with pytest.raises(RuntimeError, match=rf"50 steps in a row were skipped, because {message}; 1 steps were made"):
        step(optimizer, params, **how)
    assert all(torch.equal(before[name], param) for name, param in params.items())
    assert (optimizer.steps_made, optimizer.skipped_steps) == (1, 50)


@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_the_row_is_counted_over_a_checkpoint_and_ends_with_a_good_step():
    optimizer, params = optimizer_and_params()
    for _ in range(30):
        step(optimizer, params, NAN)
    again, others = optimizer_and_params()
    again.load_state_dict(optimizer.state_dict())
    assert int(again.param_groups[0]["skipped_in_a_row"]) == 30
    step(again, others)
    assert int(again.param_groups[0]["skipped_in_a_row"]) == 0
    assert again.skipped_steps == 30


def test_older_checkpoints_lack_the_row():
    optimizer, params = optimizer_and_params()
    step(optimizer, params)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["skipped_in_a_row"]
    again, others = optimizer_and_params()
    again.load_state_dict(saved)
    step(again, others)
    assert again.steps_made == 2


def test_counters_on_the_meta_device_are_not_read():
    own = {key: torch.zeros((), device="meta") for key in ("step", "skipped_steps", "skipped_in_a_row")}
    SkipWatch().look(own, 10, lambda: "")


def test_what_was_not_finite_is_said_of_updates_too():
    fine, broken = torch.ones(2), torch.tensor([1.0, NAN])
    assert not_finite(None, {"a": fine}, {"a": broken}) == "updates of 'a' were not finite"
    names = dict.fromkeys("abcde", broken)
    assert not_finite(None, names, {}) == "gradients of 'a', 'b', 'c' and 2 more were not finite"
