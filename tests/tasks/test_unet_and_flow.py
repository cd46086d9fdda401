"""The U-Net against torch's modules, flow matching against a velocity that is known, losses of ignorant models."""

import pytest
import torch
from task_helpers import check_draws
from torch import nn

from lightning_lopt.rules import roles_of
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import FlowMatchingTask, ImageUNetTask


@pytest.fixture(scope="module")
def split(blobs):
    return blobs.split(0.25, generator(0))


class UNet(nn.Module):
    """What :class:`ImageUNetTask` promises, of two levels, in the order of its parameters."""

    def __init__(self, depth, channels):
        super().__init__()
        low, high = channels

        def pair(fan_in, out):
            convs = [nn.Conv2d(fan_in, out, 3, padding=1, bias=False), nn.Conv2d(out, out, 3, padding=1, bias=False)]
            first, second = nn.GroupNorm(4, out), nn.GroupNorm(4, out)
            return nn.Sequential(convs[0], first, nn.SiLU(), convs[1], second, nn.SiLU())

        self.down0, self.down1, self.up0 = pair(depth, low), pair(low, high), pair(high + low, low)
        self.head = nn.Conv2d(low, depth, 1)

    def forward(self, x):
        fine = self.down0(x)
        coarse = self.down1(nn.functional.avg_pool2d(fine, 2))
        return self.head(self.up0(torch.cat([nn.functional.interpolate(coarse, scale_factor=2), fine], 1)))


def test_unet_is_that_of_modules(split):
    task = ImageUNetTask(*split, channels=(4, 8), corruption=0.7, batch_size=5)
    params, batch = task.init(generator(1)), task.batch(generator(2))
    with torch.random.fork_rng(devices=[]):
        module = UNet(1, (4, 8))
    assert list(roles_of(module).values()) == list(task.roles.values())
    module.load_state_dict(dict(zip(module.state_dict(), params.values(), strict=True)))
    answer = module(batch["inputs"] + 0.7 * batch["noise"])
    torch.testing.assert_close(task.loss(params, batch), (answer - batch["inputs"]).square().mean())


def test_a_grey_image_has_the_loss_scale(split):
    task = ImageUNetTask(*split, channels=(4, 8))
    params = task.init(generator(0))
    params["head.weight"].zero_()
    params["head.bias"].fill_(float(split[0].inputs.mean()))
    assert task.loss(params, task.full_batch("train")).item() == pytest.approx(task.loss_scale, rel=1e-5)


def test_unets_that_do_not_fit_are_refused(split):
    with pytest.raises(ValueError, match="3 levels need sides divisible by 4, got 6 x 6"):
        ImageUNetTask(*split, channels=(4, 8, 16))
    with pytest.raises(ValueError, match="multiples of 4"):
        ImageUNetTask(*split, channels=(4, 6))


def test_the_right_velocity_has_no_loss(split, monkeypatch):
    """Of images that are all alike it is known: the noise follows from what is seen."""
    alike = split[0].take(torch.zeros(40, dtype=torch.int64))
    task = FlowMatchingTask(alike, alike, widths=(8,))
    image = alike.flat[0]

    def velocity(params, x, time):
        return (x - (1 - time) * image) / time - image

    monkeypatch.setattr(task, "velocity", velocity)
    assert task.loss({}, task.batch(generator(0))).item() < 1e-6


def test_an_ignorant_flow_has_the_loss_scale(split):
    train = split[0].standardised()
    task = FlowMatchingTask(train, train, widths=(8,), batch_size=4000)
    params = {name: torch.zeros_like(value) for name, value in task.init(generator(0)).items()}
    assert task.loss_scale == pytest.approx(2.0, rel=1e-5)
    assert task.loss(params, task.batch(generator(1))).item() == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("make", [FlowMatchingTask, ImageUNetTask])
def test_noise_is_new_in_batches_and_fixed_in_splits(split, make):
    options = {"widths": (8,)} if make is FlowMatchingTask else {"channels": (4,)}
    task = make(*split, batch_size=3, **options)
    draws = generator(0)
    assert not torch.equal(task.batch(draws)["noise"], task.batch(draws)["noise"])
    once, again = task.full_batch("valid"), task.full_batch("valid")
    assert torch.equal(once["noise"], again["noise"])
    assert once["noise"].shape == once["inputs"].shape
    check_draws(task, ("train", "valid"))
