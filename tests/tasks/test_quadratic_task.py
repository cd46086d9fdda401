"""Quadratic bowls agree with a plain loop of gradient descent."""

import pytest
import torch
from torch.func import grad, vmap

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import Quadratic, QuadraticFamily

CURVATURE = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)


def run(task, rates, gen):
    """Losses before each step and after the last, on expected loss, and where it ends."""
    params, losses = task.init(gen), []
    for rate in rates:
        losses.append(task.loss(params, task.full_batch("train")))
        params = {"x": params["x"] - rate * grad(task.loss)(params, task.batch(gen))["x"]}
    losses.append(task.loss(params, task.full_batch("train")))
    return torch.stack(losses), params["x"]


@pytest.mark.parametrize("rates", [torch.full((7,), 0.1), torch.linspace(0.3, 0.0, 7)], ids=["constant", "schedule"])
def test_closed_form_is_what_gradient_descent_does(rates):
    rates = rates.double()
    task = Quadratic(CURVATURE, start=torch.tensor([1.0, -2.0, 3.0]))
    losses, end = run(task, rates, generator(0))
    torch.testing.assert_close(task.descend(rates, 7), end)
    torch.testing.assert_close(task.expected_losses(rates, 7), losses)


def test_a_number_is_a_constant_rate():
    task = Quadratic(CURVATURE)
    torch.testing.assert_close(task.descend(0.1, 5), task.descend(torch.full((5,), 0.1), 5))
    assert task.expected_losses(0.1, 0).shape == (1,)


def test_expected_losses_are_the_mean_over_noise():
    task = Quadratic(CURVATURE, noise=0.5)
    runs, steps, rate = 4000, 6, 0.2
    batches = task.batch(generator(0), runs, steps)

    def losses_of(noise):
        params, losses = task.init(generator(0)), []
        for step in range(steps + 1):
            losses.append(task.loss(params, task.full_batch("train")))
            if step < steps:
                params = {"x": params["x"] - rate * grad(task.loss)(params, {"noise": noise[step]})["x"]}
        return torch.stack(losses)

    losses = vmap(losses_of)(batches["noise"])
    stderr = losses.std(0) / runs**0.5
    assert ((losses.mean(0) - task.expected_losses(rate, steps)).abs() <= 4 * stderr + 1e-12).all()


def test_meta_gradient_of_the_closed_form():
    task, theta = Quadratic(CURVATURE, noise=0.1), torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: task.expected_losses(t.exp(), 8).sum(), theta)


def test_gradient_is_curvature_times_position_plus_noise():
    task = Quadratic(CURVATURE, noise=0.3)
    params, batch = task.init(generator(0)), task.batch(generator(1))
    expected = CURVATURE * params["x"] + 0.3 * batch["noise"]
    torch.testing.assert_close(grad(task.loss)(params, batch)["x"], expected)


def test_start_and_scale():
    task = Quadratic(torch.tensor([2.0, 6.0]))
    assert task.init(generator(0))["x"].tolist() == [1.0, 1.0]
    assert task.loss_scale == 4.0
    assert task.roles == {"x": "vector"}
    assert Quadratic(torch.tensor([1.0]), start=0.0).loss_scale == 1.0


def test_init_hands_out_fresh_tensors():
    task = Quadratic(CURVATURE)
    task.init(generator(0))["x"].zero_()
    assert task.init(generator(0))["x"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"curvature": torch.ones(2, 2)}, r"curvature must be floating point of shape \(D,\), got .* of \(2, 2\)"),
        ({"curvature": torch.ones(2, dtype=torch.int64)}, "got torch.int64"),
        ({"curvature": torch.ones(2), "noise": -1.0}, "noise must be a number >= 0, got -1.0"),
        (
            {"curvature": torch.ones(2), "start": torch.ones(3)},
            r"start must be a number or of shape \(2,\), got \(3,\)",
        ),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Quadratic(**arguments)


def test_wrong_rates():
    with pytest.raises(ValueError, match=r"lr must be a number or of shape \(3,\), got shape \(2,\)"):
        Quadratic(CURVATURE).descend(torch.ones(2), 3)


def test_family_draws_the_condition_number_it_says():
    family = QuadraticFamily(dims=(5,), conditions=(100.0,), noises=(0.1,))
    task = family.sample(generator(0))
    assert task.curvature.max() == 1.0
    assert task.curvature.min() == pytest.approx(0.01)
    assert task.noise == 0.1
    assert set(task.start.abs().tolist()) == {1.0}
    assert QuadraticFamily(dims=(1,)).sample(generator(0)).curvature.tolist() == [1.0]


@pytest.mark.parametrize("arguments", [{"dims": ()}, {"dims": (0,)}, {"conditions": (0.5,)}, {"noises": (-1.0,)}])
def test_family_refuses_bad_lists(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QuadraticFamily(**arguments)
