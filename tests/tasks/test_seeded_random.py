"""Random numbers that are functions of a seed, and losses that are looped behind vmap's back."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad_and_value, vmap

from lightning_lopt.seeding import generator
from lightning_lopt.tasks.looped import looped
from lightning_lopt.tasks.seeded_random import _GOLDEN, SeededRandom, _scramble, isolated, seeded_normal, seeded_uniform

SEED = torch.tensor(7)


def test_uniform_numbers_are_uniform_and_independent():
    count = 200_000
    draws = [
        seeded_uniform(torch.tensor(seed), stream, (count,)) for seed, stream in ((0, 0), (1, 0), (0, 1), (2**61, 0))
    ]
    for x in draws:
        bins = torch.histc(x, 50, 0.0, 1.0)
        chi_square = ((bins - count / 50) ** 2 / (count / 50)).sum()
        assert abs(chi_square - 49) < 4 * math.sqrt(2 * 49)
        assert 0 < x.min() < x.max() < 1
        assert abs(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]) < 4 / count**0.5
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlation.abs().max() < 4 / count**0.5


def test_the_mixing_is_splitmix64():
    """First outputs of the reference generator for the state 1234567, from its published C code."""
    states = 1234567 + torch.arange(1, 6) * _GOLDEN
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in _scramble(states).tolist()] == expected


def test_normal_numbers_have_the_moments():
    x = seeded_normal(SEED, 0, (100_000,))
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2**0.5), (3, 0.0, 15**0.5), (4, 3.0, 96**0.5)):
        assert abs((x**power).mean() - moment) < 4 * spread / 1e5**0.5


def test_vmap_over_seeds_equals_loop():
    seeds = torch.arange(5) * 2**60
    together = vmap(lambda seed: seeded_normal(seed, 3, (4, 2)))(seeds)
    assert torch.equal(together, torch.stack([seeded_normal(seed, 3, (4, 2)) for seed in seeds]))
    assert len(together.unique()) == 40


@pytest.mark.parametrize(
    ("function", "shape", "spread"),
    [
        (lambda x: F.dropout(x, 0.3), (64, 40), 1),
        (lambda x: F.dropout(x, 0.3, inplace=True), (64, 40), 1),
        (nn.Dropout(0.3), (64, 40), 1),
        (nn.Dropout1d(0.3), (16, 40, 6), 6),
        (nn.Dropout2d(0.3), (16, 40, 3, 2), 6),
        (nn.Dropout3d(0.3), (16, 40, 1, 3, 2), 6),
    ],
)
def test_dropout_drops_entries_or_channels(function, shape, spread):
    with SeededRandom(SEED):
        out, again = function(torch.ones(shape)), function(torch.ones(shape))
    with SeededRandom(SEED):
        assert torch.equal(function(torch.ones(shape)), out)
    with SeededRandom(None):
        assert torch.equal(function(torch.ones(shape)), torch.ones(shape))
    assert not torch.equal(out, again)  # each call is a stream of its own
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.7]))
    groups = out.reshape(-1, spread)
    assert torch.equal(groups, groups[:, :1].expand_as(groups))
    assert abs((groups[:, 0] > 0).float().mean() - 0.7) < 4 * (0.21 / len(groups)) ** 0.5


def test_dropout_that_is_off_or_total():
    with SeededRandom(SEED) as mode:
        x = torch.ones(5, requires_grad=True)
        assert F.dropout(x, 0.0) is x
        assert F.dropout(x, 0.5, training=False) is x
        assert mode.calls == 0
        F.dropout(x, 1.0).sum().backward()
    assert x.grad.tolist() == [0.0] * 5


def test_factories():
    with SeededRandom(SEED):
        assert torch.rand(2, 3).shape == torch.rand((2, 3)).shape == torch.randn(size=(2, 3)).shape == (2, 3)
        assert torch.randn(2, dtype=torch.float64).dtype == torch.float64
        assert torch.rand_like(torch.ones(4, dtype=torch.float64)).dtype == torch.float64
        assert abs(torch.randn_like(torch.ones(4000)).std() - 1) < 0.05
        assert abs(torch.bernoulli(torch.full((4000,), 0.2)).mean() - 0.2) < 0.03
        assert abs(torch.bernoulli(torch.ones(4000), 0.2).mean() - 0.2) < 0.03
        own = torch.rand(3, generator=generator(0))
    assert torch.equal(own, torch.rand(3, generator=generator(0)))


def test_attention_drops_weights():
    q, k, v = torch.randn(3, 2, 4, 5, 3, generator=generator(0)).unbind(0)
    with SeededRandom(None):
        exact = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=True)
    torch.testing.assert_close(exact, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    seeds = torch.arange(3000)

    def one(seed):
        with SeededRandom(seed):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, is_causal=True)

    draws = vmap(one)(seeds)
    assert torch.equal(draws[3], one(seeds[3]))
    assert ((draws.mean(0) - exact).abs() <= 5 * draws.std(0) / 3000**0.5).all()
    # the first query sees one key, so it keeps twice that value or nothing
    torch.testing.assert_close(draws[:, 0, 0, 0].unique(dim=0).sum(0), 2 * v[0, 0, 0])


def test_isolated_seeds_and_restores():
    with isolated(3):
        first = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    before = torch.get_rng_state()

    def fails():
        with isolated(3):
            assert torch.equal(torch.rand(2), first[0])
            assert np.array_equal(np.random.rand(2), first[1])  # noqa: NPY002
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(torch.get_rng_state(), before)


def branching(params, batch):
    """Cannot be vmapped: it branches on a value."""
    score = (params["x"] * batch["z"]).sum()
    return (params["x"] ** 3).sum() * score if score.item() > 0 else (params["x"] ** 2).sum() * score


def loss(params, batch):
    return looped(branching, params, batch)


@pytest.fixture
def stacked():
    x, z = torch.randn(2, 6, 3, generator=generator(0), dtype=torch.float64).unbind(0)
    scores = (x * z).sum(1)
    assert (scores > 0).any()
    assert (scores < 0).any()
    return {"x": x}, {"z": z}


def take(tree, index):
    return {name: value[index] for name, value in tree.items()}


def test_looped_values_and_gradients(stacked):
    params, batch = stacked
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(branching)(params, batch)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            grads, values = vmap(grad_and_value(loss))(params, batch)
            only = vmap(loss)(params, batch)
    thrice, _ = vmap(grad_and_value(lambda p, b: 3 * loss(p, b)))(params, batch)
    torch.testing.assert_close(thrice["x"], 3 * grads["x"])
    shared = vmap(grad_and_value(loss), (0, None))(params, take(batch, 0))
    twice = vmap(vmap(grad_and_value(loss)))(
        *({k: v.unflatten(0, (2, 3)) for k, v in tree.items()} for tree in stacked)
    )
    for index in range(6):
        one_grads, value = grad_and_value(branching)(take(params, index), take(batch, index))
        for found in (take(grads, index)["x"], twice[0]["x"].flatten(0, 1)[index]):
            torch.testing.assert_close(found, one_grads["x"])
        for found in (values[index], only[index], twice[1].flatten()[index]):
            torch.testing.assert_close(found, value)
        one_grads, value = grad_and_value(branching)(take(params, index), take(batch, 0))
        torch.testing.assert_close((shared[0]["x"][index], shared[1][index]), (one_grads["x"], value))


def test_meta_gradients_pass_through_a_loop(stacked):
    """A step of gradient descent, differentiated by its learning rate and its start."""

    def after_step(start, rate, function):
        params, batch = {"x": start}, stacked[1]
        if function is loss:
            grads, _ = vmap(grad_and_value(loss))(params, batch)
            return vmap(loss)({"x": start - rate * grads["x"]}, batch).sum()
        total = 0
        for index in range(6):
            one, z = {"x": start[index]}, take(batch, index)
            (slope,) = torch.autograd.grad(branching(one, z), [one["x"]], create_graph=True)
            total = total + branching({"x": one["x"] - rate * slope}, z)
        return total

    gradients = []
    for function in (loss, branching):
        start = stacked[0]["x"].clone().requires_grad_()
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(after_step(start, rate, function), [start, rate]))
    torch.testing.assert_close(*gradients)
