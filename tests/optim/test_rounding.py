"""Stochastic rounding against its closed form, entry by entry and as noise."""

import pytest
import torch

from lightning_lopt.optim.rounding import LARGEST, rounded, seeds_of

STEPS = 2000


def seed(step=0):
    return seeds_of(torch.tensor(step), 1)[0]


def neighbours(x):
    """The values of bfloat16 around ``x``, towards zero and away from it, and the share of the way."""
    bits = x.view(torch.int32)
    near, share = (bits & -65536), (bits & 65535).double() / 65536
    return near.view(torch.float32), (near + 65536).view(torch.float32), share


def test_each_neighbour_has_the_probability_that_keeps_the_mean():
    x = torch.randn(600, generator=torch.Generator().manual_seed(0)) * torch.logspace(-38, 30, 600)
    near, far, share = neighbours(x)
    is_far = torch.zeros(600, dtype=torch.float64)
    for step in range(STEPS):
        (low,) = rounded([x], seed(step))
        assert bool(((low.float() == near) | (low.float() == far)).all())
        is_far += low.float() == far
    deviation = (is_far / STEPS - share) / ((share * (1 - share) / STEPS).sqrt() + 1e-9)
    assert deviation.abs().max() < 4.5
    assert abs(deviation.square().mean() - 1) < 0.25


def test_a_long_average_arrives_where_float32_does():
    """Rounded to the nearest, nothing would move: a step of 0.001 is below half of the distance of neighbours."""
    x = torch.ones(20_000, dtype=torch.bfloat16)
    for step in range(3000):
        (x,) = rounded([torch.lerp(x.float(), torch.tensor(2.0), 0.001)], seed(step))
    assert x.double().mean().item() == pytest.approx(2 - 0.999**3000, abs=2e-3)
    assert x.double().std() < 0.1


@pytest.mark.parametrize("others", [[1.0], [float("inf"), float("nan")]])
def test_values_of_bfloat16_stay_exact(others):
    """All of them, beside ordinary numbers and beside what is not finite."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    every = every[every.isfinite() | (len(others) > 1)]
    for step in range(5):
        low = rounded([every.float(), torch.tensor(others)], seed(step))[0]
        assert torch.equal(low.nan_to_num(nan=7.0), every.nan_to_num(nan=7.0))
        assert torch.equal(low.isnan(), every.isnan())


def test_what_is_not_finite_and_the_largest_numbers():
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001, -1, 0x7FC00000], dtype=torch.int32)  # NaN of all kinds
    largest = torch.finfo(torch.float32).max
    for step in range(20):
        low = rounded([bits.view(torch.float32), torch.tensor([largest, -largest, float("inf"), 1.0])], seed(step))
        assert bool(low[0].isnan().all())
        assert low[1].tolist() == [LARGEST, -LARGEST, float("inf"), 1.0]


def test_shapes_layouts_and_types():
    x = torch.randn(7, 5, 3)
    tensors = [x, x.mT, x[:, :1].expand(7, 5, 3), x.double(), torch.ones(()), torch.randn(9000)]
    for low, value in zip(rounded(tensors, seed()), tensors, strict=True):
        assert (low.dtype, low.shape) == (torch.bfloat16, value.shape)
        torch.testing.assert_close(low.double(), value.double(), rtol=2**-7, atol=0)


def test_the_same_seed_is_the_same_rounding_and_no_generator_is_touched():
    x = torch.randn(10_000)
    before = torch.get_rng_state()
    first, again, other = (rounded([x], seed(step))[0] for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first != other).double().mean() == pytest.approx(1 / 3, abs=0.05)
    assert torch.equal(before, torch.get_rng_state())
    words = torch.stack(seeds_of(torch.tensor(3), 1000) + seeds_of(torch.tensor(4), 1000))
    assert len(set(words.tolist())) == 2000


def test_noise_of_a_matrix_has_no_direction():
    """Errors of entries half-way between neighbours: their largest singular value is that of independent signs."""
    half = torch.full((512, 512), 1 + 2.0**-8)
    errors = (rounded([half], seed())[0].double() - 1 - 2**-8) * 2**8
    assert bool((errors.abs() == 1).all())
    assert torch.linalg.matrix_norm(errors, 2) / 512**0.5 < 2.1
    one, two = (rounded([half.flatten()], seed(step))[0].double() - 1 - 2**-8 for step in (0, 1))
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 4 / 512
    assert abs(torch.corrcoef(torch.stack([one[:-1], one[1:]]))[0, 1]) < 4 / 512
    keys = rounded([half.flatten(), half.flatten()], seed())
    assert abs(torch.corrcoef(torch.stack([key.double() for key in keys]))[0, 1]) < 4 / 512
