"""Large tensors are computed in blocks: with the same results as in one piece, and in less memory."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.func import vmap

from lightning_lopt import ResidualRule, load_rule
from lightning_lopt.evaluation.benchmark.memory import measured_memory
from lightning_lopt.evaluation.step_cost import learned
from lightning_lopt.rules import StepContext
from lightning_lopt.rules.residual_parts.eigenbasis import LARGEST_SIDE
from lightning_lopt.rules.shared import blocks
from lightning_lopt.rules.shared.blocks import in_blocks, whole_tensors

SHAPES = {
    "a long side of rows": ((60, 6), "embedding"),
    "a long side of columns": ((6, 60), "head"),
    "an orthogonalised matrix": ((60, 6), "matrix"),
    "an orthogonalised kernel": ((6, 10, 3, 2), "matrix"),
    "a matrix without a basis": ((40, 50), "matrix"),
    "a vector": ((300,), "vector"),
}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "LARGE", 64)
    monkeypatch.setattr(blocks, "BLOCK", 32)


def three_steps(rule, shape, role, dtype=torch.float64):
    """Parameters and state after three steps, and the gradients, which must stay as they are."""
    draws = torch.Generator().manual_seed(0)
    params = {"w": torch.randn(shape, generator=draws, dtype=dtype)}
    state = rule.init_state(params, {"w": role})
    for step in range(3):
        grads = {"w": torch.randn(shape, generator=draws, dtype=dtype)}
        before = {"w": params["w"].clone()}, {"w": grads["w"].clone()}
        at = StepContext(torch.tensor(float(step)), torch.tensor(10.0), roles={"w": role})
        with torch.no_grad():
            updates, state = rule(params, grads, state, at)
        assert torch.equal(params["w"], before[0]["w"])
        assert torch.equal(grads["w"], before[1]["w"])
        params = {"w": params["w"] + updates["w"]}
    return {"param": params["w"], **state.tensors["w"], **state.shared}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("has_correction", [False, True])
def test_steps_in_blocks_are_steps_of_whole_tensors(small_blocks, monkeypatch, kind, has_correction):
    monkeypatch.setattr("lightning_lopt.rules.residual_parts.eigenbasis.LARGEST_SIDE", 8)
    base = load_rule("base")
    rule = ResidualRule(**base.config | {"direction": has_correction, "longest_side": 8})
    rule.load_state_dict(base.state_dict(), strict=False)
    if has_correction:
        torch.nn.init.normal_(rule.direction.output_weight, generator=torch.Generator().manual_seed(0))
    in_pieces = three_steps(rule, *SHAPES[kind])
    with whole_tensors():
        whole = three_steps(rule, *SHAPES[kind])
    assert in_pieces.keys() == whole.keys()
    torch.testing.assert_close(in_pieces, whole, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_blocks_cover_all_slices_once(small_blocks):
    sizes = []

    def doubled(x, y):
        sizes.append(x.numel())
        return x + y, x.sum(), y.sum(0)

    x, y = torch.arange(70.0).reshape(14, 5), torch.ones(14, 5)
    results = in_blocks(doubled, x, y, sums=2)
    for result, expected in zip(results, (x + y, x.sum(), y.sum(0)), strict=True):
        torch.testing.assert_close(result, expected)
    assert sum(sizes) == 70
    assert max(sizes) <= blocks.BLOCK
    (columns,) = in_blocks(lambda x: (x * torch.arange(14)[:, None],), x, axis=1)
    torch.testing.assert_close(columns, x * torch.arange(14)[:, None])


def test_derivatives_are_those_of_whole_tensors(small_blocks):
    """Nothing that a derivative needs is overwritten."""

    def squares(rule, params):
        state = rule.init_state(params, {"w": "matrix"})
        for step in range(2):
            at = StepContext(torch.tensor(float(step)), torch.tensor(10.0), roles={"w": "matrix"})
            updates, state = rule(params, {"w": params["w"] * 2}, state, at)
            params = {"w": params["w"] + updates["w"]}
        return params["w"].square().sum()

    rule, derivatives = ResidualRule(controller=False).double(), []
    for _ in range(2):
        params = {"w": torch.randn(12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
        with whole_tensors() if derivatives else nullcontext():
            derivatives.append(torch.autograd.grad(squares(rule, params), list(rule.parameters()), allow_unused=True))
    assert any(x is not None and bool(x.any()) for x in derivatives[0])
    torch.testing.assert_close(derivatives[0], derivatives[1])


def test_a_compiled_function_has_one_graph(small_blocks):
    function = torch.compile(lambda x: in_blocks(lambda x: (2 * x,), x)[0], backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(function(torch.ones(70)), torch.full((70,), 2.0))


def test_a_tensor_with_two_bases_is_never_in_blocks():
    assert min(blocks.LARGE, blocks.DEVICE_BLOCK) >= LARGEST_SIDE**2


@torch.no_grad()
def test_results_overwrite_only_what_they_may(small_blocks):
    x = torch.ones(70)
    (kept,) = in_blocks(lambda x: (2 * x,), x)
    assert torch.equal(x, torch.ones(70))
    (overwritten,) = in_blocks(lambda x: (2 * x,), x, may_overwrite=x)
    assert overwritten is x
    assert torch.equal(x, kept)


@torch.no_grad()
def test_blocks_map_over_models(small_blocks):
    """As in meta-training, where vmap runs a step of many models at once."""
    x, y = torch.randn(3, 70), torch.randn(70)
    product, total = vmap(lambda x: tuple(in_blocks(lambda y, x: (x * y, (x * y).sum()), y, x, sums=1)))(x)
    torch.testing.assert_close(product, x * y)
    torch.testing.assert_close(total, x @ y)


def test_a_step_of_a_large_embedding_takes_three_times_its_memory():
    """The new state, which is written once all of it is known to be finite: two averages and the update."""
    table = torch.nn.Parameter(torch.randn(20_000, 64))
    table.grad = torch.randn(20_000, 64)
    make = partial(learned, [("table", table, "embedding")], load_rule("base"), lambda: torch.ones(()), 100)
    _, memory = measured_memory(make, 3, torch.device("cpu"))
    assert memory.peak < (3 * table.numel() + 10 * blocks.BLOCK) * 4
