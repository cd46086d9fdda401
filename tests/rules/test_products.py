"""Products of wide matrices in bfloat16."""

import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer
from lightning_lopt.rules.shared import products
from lightning_lopt.rules.shared.arithmetic import NEWTON_SCHULZ, newton_schulz
from lightning_lopt.rules.shared.products import WIDE, added_product, gram, product

ROUNDING = 2**-8


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with units for bfloat16; products in that type work on others, too."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device_type: True)


def relative_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


@pytest.mark.usefixtures("with_units")
class TestWithUnits:
    def test_a_wide_product_is_that_of_rounded_factors(self) -> None:
        a, b = normal(WIDE, WIDE), normal(WIDE, WIDE, seed=1)
        exact = a.bfloat16().double() @ b.bfloat16().double()
        result = product(a, b)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), exact, rtol=ROUNDING, atol=1e-3)
        assert 1e-4 < relative_distance(result, a.double() @ b.double()) < ROUNDING

    @pytest.mark.parametrize("sizes", [(WIDE - 1, WIDE, WIDE), (WIDE, WIDE - 1, WIDE), (WIDE, WIDE, WIDE - 1)])
    def test_a_product_with_a_short_side_is_exact(self, sizes: tuple[int, int, int]) -> None:
        n, m, k = sizes
        a, b = normal(n, m), normal(m, k, seed=1)
        assert torch.equal(product(a, b), a @ b)

    def test_a_chain_is_the_product_of_products(self) -> None:
        a, b, c = (normal(WIDE, WIDE, seed=seed) for seed in range(3))
        assert torch.equal(product(a, b, c), product(product(a, b), c))
        short = normal(WIDE, 8, seed=3)
        assert torch.equal(product(a, b, short), a @ b @ short)

    def test_a_gram_matrix_is_a_product(self) -> None:
        for x in (normal(WIDE, 2 * WIDE), normal(2 * WIDE, WIDE).mT, normal(WIDE, 8)):
            assert torch.equal(gram(x), product(x, x.mT))

    def test_a_single_factor_is_returned_as_it_is(self) -> None:
        a = normal(WIDE, WIDE)
        assert product(a) is a

    def test_float64_stays_exact(self) -> None:
        a = normal(WIDE, WIDE).double()
        assert torch.equal(product(a, a), a @ a)

    def test_the_sum_is_not_rounded(self) -> None:
        a, x = normal(WIDE, WIDE), normal(WIDE, WIDE, seed=1)
        blank = torch.zeros_like(a)
        assert torch.equal(added_product(x, a, blank, beta=1.0), x)
        expected = 2 * x.double() + 3 * (a.double() @ a.double())
        assert relative_distance(added_product(x, a, a, beta=2.0, alpha=3.0), expected) < ROUNDING

    @pytest.mark.parametrize("shape", [(WIDE, 2 * WIDE), (2 * WIDE, WIDE)])
    def test_newton_schulz_is_that_of_torch(self, shape: tuple[int, int]) -> None:
        muon = pytest.importorskip("torch.optim._muon", reason="torch has no Muon")
        x = normal(*shape)
        x = (x / x.norm()).bfloat16()
        assert x.norm() == 1  # torch divides by the norm in bfloat16
        expected = muon._zeropower_via_newtonschulz(x, NEWTON_SCHULZ, 5, 1e-7)
        assert torch.equal(newton_schulz(x.float()), expected.float())

    def test_newton_schulz_makes_the_same_matrix_nearly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = normal(WIDE, 2 * WIDE) / WIDE
        rounded = newton_schulz(x)
        monkeypatch.setattr(products, "multiplies_bfloat16", lambda device_type: False)
        assert 1e-4 < relative_distance(rounded, newton_schulz(x)) < 0.02


def test_a_wide_product_is_compiled_in_one_graph() -> None:
    a = normal(WIDE, WIDE)
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    assert torch.equal(compiled(a, a), product(a, a))


def trained(rounds: bool, monkeypatch: pytest.MonkeyPatch, steps: int = 30) -> tuple[float, torch.Tensor]:
    """Final loss, and the weight of the wide layer, of a teacher-student problem."""
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device_type: rounds)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, 1))
    optimizer = LearnedOptimizer(model, total_steps=steps)
    inputs = normal(64, 8)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    for _ in range(steps):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss)
    return float(loss.detach()), model[2].weight.detach().clone()


def test_training_a_wide_layer_ends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    exact_loss, exact_weight = trained(False, monkeypatch)
    rounded_loss, rounded_weight = trained(True, monkeypatch)
    assert not torch.equal(exact_weight, rounded_weight)
    assert rounded_loss < 0.1
    assert abs(rounded_loss - exact_loss) < 0.02
