"""The fast evaluation of the per-entry network against its equation, written down plainly."""

import pytest
import torch
from torch.func import grad, vmap

from lightning_lopt.rules.shared import fast_entry_network
from lightning_lopt.rules.shared.entry_network import EntryNetwork, Weights, apply_plainly
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.features import averaged_features, spread
from lightning_lopt.rules.shared.moment_features import MomentFeatures, MomentumFeatures
from lightning_lopt.rules.shared.moments import Rates, init_averages, update_averages

SHAPES = [(1,), (40,), (7, 9), (1, 60), (60, 1), (4, 3, 5, 2)]
EPS = 1e-5
DECAYS = 3


def randomised(network):
    """In float64, with biases that are not 0."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draws))
    return network.double()


def tensors(count, *shape):
    draws = torch.Generator().manual_seed(2)
    return torch.randn(count, *shape, generator=draws, dtype=torch.float64)


def momentum(shape):
    """Features of MLPLOpt, which has constants and no outer features."""
    grad, param, *averages = tensors(2 + DECAYS, *shape)
    network = randomised(EntryNetwork(2 + DECAYS, 0, 8, 2, constant=4))
    weights = network.weights(torch.float64, 2, torch.arange(4.0))
    return weights, MomentumFeatures(grad[None], param[None], torch.stack(averages)), ()


def moments(shape):
    """Features of RNN-MLP, among them products of two tensors."""
    grad, param, *averages = tensors(2 + 2 * DECAYS, *shape)
    network = randomised(EntryNetwork(3 + 4 * DECAYS, 0, 8, 5))
    first, second = torch.stack(averages[:DECAYS]), torch.stack(averages[DECAYS:]).square()
    return network.weights(torch.float64, 5), MomentFeatures(grad[None], param[None], first, second), ()


def factored(shape, flat=False):
    """Features of Celo2, or, flat, of VeLO and Celo: outer features stand beside the inner ones."""
    param, grad = tensors(2, *shape)
    decays = torch.full((DECAYS,), 0.1, dtype=torch.float64)
    averages = update_averages(init_averages(param, DECAYS, "first"), grad, Rates(decays, 0.1, decays), "first")
    ends_early = param.ndim < 2 and not flat
    inputs, outer = averaged_features(param, grad, averages, "first", eps=EPS, diagonal_eps=0.0 if flat else None)
    network = randomised(EntryNetwork(6 + 4 * DECAYS, 4 * DECAYS, 8, 3))
    weights = network.weights(torch.float64, 3)
    if ends_early:  # the features of rank 1 end before the rows
        weights = weights._replace(inner_0=weights.inner_0[:, : 6 + 3 * DECAYS], outer_0=None)
    return weights, *(spread(inputs, outer) if flat else (inputs, outer))


def spread_out(shape):
    return factored(shape, flat=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("features", [momentum, moments, factored, spread_out], ids=lambda features: features.__name__)
@pytest.mark.parametrize("block", [None, 8], ids=["whole", "blocks"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not-recorded"])
def test_equal_to_the_plain_form(features, shape, block, recorded, monkeypatch):
    """Blocks are computed in memory of their own where gradients are recorded, else in one workspace."""
    if block is not None:
        monkeypatch.setattr(fast_entry_network, "BLOCK", block)
    weights, inputs, outer = features(shape)
    with torch.set_grad_enabled(recorded):
        fast = apply_network(weights, inputs, outer, EPS)
    plain = apply_plainly(weights, inputs, outer, EPS)
    assert fast.shape == plain.shape
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_equal_for_several_networks_side_by_side():
    _, inputs, outer = factored((6, 5))
    shares = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.5, -1.0]], dtype=torch.float64)
    mixtures = randomised(EntryNetwork(6 + 4 * DECAYS, 4 * DECAYS, 8, copies=3)).mixtures(shares, 2)
    weights = Weights(**mixtures)
    results = [
        vmap(lambda w, f=f: f(Weights(*w), inputs, outer, EPS))(tuple(weights)) for f in (apply_network, apply_plainly)
    ]
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_equal_derivatives():
    weights, inputs, outer = factored((6, 5))
    both = [
        grad(lambda w, f=f: f(Weights(*w), inputs, outer, EPS).square().sum())(tuple(x.detach() for x in weights))
        for f in (apply_network, apply_plainly)
    ]
    for fast, plain in zip(*both, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)
