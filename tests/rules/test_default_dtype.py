"""Rules neither build nor step differently where torch's default type is another, as under Lightning's 16-true."""

from contextlib import contextmanager

import pytest
import torch
from rule_catalogue import cases
from test_contract import assert_same, tensors

from lightning_lopt import StepContext, load_rule

SHAPES = {"scalar": (), "vector": (7,), "matrix": (4, 5), "conv": (5, 3, 2, 2)}
OTHERS = [torch.float16, torch.bfloat16, torch.float64]


@contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def built(entry):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return entry.build(**entry.config)


def two_steps(rule):
    """Updates and state after two steps with a drawn θ, gradients and loss, all float32."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws, dtype=torch.float32))
    params = tensors(0, shapes=SHAPES, dtype=torch.float32)
    state = rule.init_state(params, {})
    for step in range(2):
        numbers = torch.tensor([step, 10.0, 1.0 / (step + 1)], dtype=torch.float32)
        at = StepContext(*numbers.unbind(), weight_decay={"matrix": 0.1})
        with torch.no_grad():
            updates, state = rule(params, tensors(step + 1, shapes=SHAPES, dtype=torch.float32), state, at)
        params = {name: params[name] + updates[name] for name in params}
    return params, state


@pytest.mark.parametrize("entry", cases())
def test_theta_and_steps_are_the_same_bit_for_bit(entry):
    expected = built(entry)
    theta = {name: value.clone() for name, value in expected.state_dict().items()}
    assert {value.dtype for value in theta.values() if value.is_floating_point()} <= {torch.float32}
    steps = two_steps(expected)
    for dtype in OTHERS:
        with default(dtype):
            rule = built(entry)
            assert_same(dict(rule.state_dict()), theta)
            assert_same(two_steps(rule), steps)


def test_embedded_weights_load_bit_for_bit():
    expected = dict(load_rule("base").state_dict())
    for dtype in OTHERS:
        with default(dtype):
            assert_same(dict(load_rule("base").state_dict()), expected)
