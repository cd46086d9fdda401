"""A function of tensors as a graph: the same bits, and refusals."""

import itertools

import pytest
import torch
from torch import nn

from lightning_lopt.tracing import TracedFunction, UntraceableError, tensors_of

COUNTS = itertools.count()


def test_operations_in_place_on_what_the_function_made():
    def function(x, y):
        z = torch.zeros_like(x).add_(x)
        z.mul_(2)
        torch.mul(z, y, out=z)
        low, high = torch.aminmax(z)
        return z.view(z.shape), torch.stack([low, high]), y

    traced = TracedFunction(function, [torch.ones(3), torch.ones(3)])
    x, y = torch.randn(3), torch.randn(3)
    z, extremes, handed_through = traced([x, y])
    assert torch.equal(z, 2 * x * y)
    assert torch.equal(extremes, torch.stack([z.min(), z.max()]))
    assert handed_through is y
    assert TracedFunction(lambda x: (x,), [x])([y])[0] is y


def test_vmap_is_gone_and_tensors_beside_the_arguments_are_read_anew():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        traced = TracedFunction(lambda x: (torch.vmap(layer)(x),), [torch.ones(5, 3)])
        layer.weight.data.mul_(2)
        x = torch.randn(5, 3)
        assert torch.equal(traced([x])[0], torch.vmap(layer)(x))
    assert tensors_of(layer) == list(layer.parameters())


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: (x.add_(1),), "writes into"),
        (lambda x: (x + torch.randn(3),), "draws random numbers"),
        (lambda x: (x if x.sum() > 0 else -x,), "reads the value"),
        (lambda x: (x * float(x.sum()),), "reads the value"),
        (lambda x: (x + next(COUNTS),), "other numbers"),
        (lambda x: ("text",), "Error"),
    ],
)
def test_what_cannot_be_traced(function, why):
    state = torch.get_rng_state()
    with pytest.raises(UntraceableError, match=why):
        TracedFunction(function, [torch.ones(3)])
    assert torch.equal(torch.get_rng_state(), state)
