"""Large tensors are computed in blocks: with the same results as in one piece, and in less memory."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.func import vmap

from lightning_lopt import LearnedOptimizer, ResidualRule, load_rule
from lightning_lopt.evaluation.benchmark.memory import measured_memory
from lightning_lopt.evaluation.step_cost import learned
from lightning_lopt.optim.rounding import seeds_of
from lightning_lopt.optim.stack_steps import MOST_TOGETHER, StateStore
from lightning_lopt.optim.traced_steps import MOST_ENTRIES
from lightning_lopt.rules import StepContext
from lightning_lopt.rules.contract.stacks import Stack
from lightning_lopt.rules.residual_parts.eigenbasis import LARGEST_SIDE
from lightning_lopt.rules.shared import blocks
from lightning_lopt.rules.shared.blocks import Output, in_blocks, whole_tensors

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
    monkeypatch.setattr("lightning_lopt.rules.residual_parts.eigenbasis.LARGEST_SIDE", 8)


def base_of_short_bases(**config):
    """The rule `base` whose bases have at most 8 axes."""
    base = load_rule("base")
    rule = ResidualRule(**base.config | {"longest_side": 8, **config})
    rule.load_state_dict(base.state_dict(), strict=False)
    return rule


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
def test_steps_in_blocks_are_steps_of_whole_tensors(small_blocks, kind, has_correction):
    rule = base_of_short_bases(direction=has_correction)
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
    (overwritten,) = in_blocks(lambda x: (2 * x,), x, outputs={0: Output(x)})
    assert overwritten is x
    assert torch.equal(x, kept)


@torch.no_grad()
def test_memory_in_another_order_is_not_written(small_blocks):
    x = torch.ones(10, 4, 3).mT
    (result,) = in_blocks(lambda x: (2.0 * x,), x, outputs={0: Output(x)})
    assert torch.equal(x, torch.ones(10, 3, 4))
    assert torch.equal(result, torch.full((10, 3, 4), 2.0))


@torch.no_grad()
def test_blocks_have_the_widest_type(small_blocks):
    x, y = torch.ones(70, dtype=torch.bfloat16), torch.full((70,), 1 / 3)
    stored = []
    (result,) = in_blocks(
        lambda x, y: (x * y,), x, y, outputs={0: Output(x, lambda memory, values: stored.append(values))}
    )
    assert result is x
    assert torch.equal(torch.cat(stored), y)


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
def test_averages_are_written_in_place_where_a_device_allows_it(small_blocks, kind):
    """An accelerator does not wait for the truth value, so the step receives the value as a tensor."""
    (shape, role), rule = SHAPES[kind], base_of_short_bases()
    param, grad = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    context, begin = StepContext(torch.tensor(1.0), torch.tensor(10.0)), rule.init_state({"w": param}, {"w": role})
    results = {}
    for allowed in (None, False, True):
        state = {key: x.clone() for key, x in begin.tensors["w"].items()}
        store = None if allowed is None else StateStore(torch.tensor(allowed), None)
        stack = Stack(["w"], param, grad, state, role, store=store)
        at = rule.at(begin.shared, context)
        ((controls,), _) = rule.exchanged([stack], at, begin.shared, context)
        _, new_state = rule.stepped(stack, controls, at)
        written = {key for key, x in state.items() if not torch.equal(x, begin.tensors["w"][key])}
        results[allowed] = written, new_state
    averages = {key for key in begin.tensors["w"] if key.endswith(("momentum", "_moment"))}
    (none, expected), (refused, kept), (written, state) = results.values()
    assert (none, refused, written) == (set(), set(), averages)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    assert all(torch.equal(kept[key], begin.tensors["w"][key]) for key in averages)


@torch.no_grad()
def test_blocks_of_narrow_state_are_rounded_without_bias():
    store = StateStore(True, seeds_of(torch.tensor(0), 1)[0])
    memory = torch.zeros(300, 300, dtype=torch.bfloat16)
    for rows in memory.split(30):
        store(rows, torch.full((30, 300), 1 / 3))
    assert len(set(map(tuple, memory.reshape(10, -1).tolist()))) == 10  # each block has bits of its own
    assert abs(memory.double().mean() - 1 / 3) < 2e-5


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_an_optimizer_that_writes_in_place_makes_the_same_steps(small_blocks, state_dtype):
    def trained():
        model = torch.nn.Sequential(torch.nn.Embedding(40, 6), torch.nn.Linear(6, 20), torch.nn.Linear(20, 3))
        draws = torch.Generator().manual_seed(0)
        params = list(model.parameters())
        for param in params:
            param.data = torch.randn(param.shape, generator=draws)
        rule = base_of_short_bases()
        optimizer = LearnedOptimizer(params, rule, total_steps=8, compile=False, state_dtype=state_dtype)
        for _ in range(8):
            for param in params:
                param.grad = torch.randn(param.shape, generator=draws)
            optimizer.step()
        return params, optimizer

    params, optimizer = trained()
    with whole_tensors():
        expected, expected_optimizer = trained()
    rounding = 1e-5 if state_dtype is None else 0.02
    for x, y in zip(params, expected, strict=True):
        assert (x - y).norm() < rounding * y.norm()
        state, expected_state = optimizer.state[x], expected_optimizer.state[y]
        for key, value in state.items():
            assert value.dtype == expected_state[key].dtype
            expected_value = expected_state[key].double()
            if value.numel() == 1 and state_dtype is not None:  # calibration compares rounded steps
                continue
            assert (value.double() - expected_value).norm() < 5 * rounding * (1e-9 + expected_value.norm()), key


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("fault", ["its gradient", "another gradient", "the loss"])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_a_skipped_step_changes_nothing(small_blocks, monkeypatch, fault, state_dtype, waits):
    if not waits:  # as on an accelerator
        monkeypatch.setattr("lightning_lopt.optim.precision._is_on_host", lambda x: False)
    params = [torch.nn.Parameter(torch.randn(40, 6)), torch.nn.Parameter(torch.randn(3))]
    optimizer = LearnedOptimizer(params, base_of_short_bases(), total_steps=8, compile=False, state_dtype=state_dtype)
    for step in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        if step == 2:
            before = [(x.detach().clone(), {k: v.clone() for k, v in optimizer.state[x].items()}) for x in params]
            if fault != "the loss":
                params[fault == "another gradient"].grad[1] = torch.nan
        loss = torch.tensor(torch.inf if fault == "the loss" and step == 2 else 1.0)
        optimizer.step(lambda loss=loss: loss)
    assert optimizer.skipped_steps == 1
    for x, (value, state) in zip(params, before, strict=True):
        assert torch.equal(x, value)
        assert all(torch.equal(optimizer.state[x][key], state[key]) for key in state)


def test_traced_stacks_are_never_computed_in_blocks():
    """A traced step is computed again to check its graph, so it must not write to its inputs."""
    assert max(MOST_ENTRIES, MOST_TOGETHER) <= blocks.LARGE


@torch.no_grad()
def test_blocks_map_over_models(small_blocks):
    """As in meta-training, where vmap runs a step of many models at once."""
    x, y = torch.randn(3, 70), torch.randn(70)
    product, total = vmap(lambda x: tuple(in_blocks(lambda y, x: (x * y, (x * y).sum()), y, x, sums=1)))(x)
    torch.testing.assert_close(product, x * y)
    torch.testing.assert_close(total, x @ y)


def test_a_step_of_a_large_embedding_takes_its_memory_once_more():
    """The gradient in the unit of the run, whose memory then holds the update; averages are updated in place."""
    table = torch.nn.Parameter(torch.randn(20_000, 64))
    table.grad = torch.randn(20_000, 64)
    make = partial(learned, [("table", table, "embedding")], load_rule("base"), lambda: torch.ones(()), 100)
    _, memory = measured_memory(make, 3, torch.device("cpu"))
    assert memory.peak < (table.numel() + 10 * blocks.BLOCK) * 4
