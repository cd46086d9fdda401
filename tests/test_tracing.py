"""A function of tensors as a graph: the same bits, and refusals."""

import contextlib
import gc
import itertools
from random import Random

import pytest
import torch
from torch import nn

from lightning_lopt.hoisting import HoistedRun
from lightning_lopt.inductor_graphs import compiled, module_of
from lightning_lopt.memory_reuse import overwriting
from lightning_lopt.script_graphs import ScriptRun
from lightning_lopt.traced_calls import TracedCalls
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
        (lambda x: (x + next(COUNTS),), "other values"),
        (lambda x: ("text",), "Error"),
    ],
)
def test_what_cannot_be_traced(function, why):
    state = torch.get_rng_state()
    with pytest.raises(UntraceableError, match=why):
        TracedFunction(function, [torch.ones(3)])
    assert torch.equal(torch.get_rng_state(), state)


def operations_of(traced):
    return [operation.function._schema.name for operation in traced.program.operations]


def test_equal_operations_and_views_are_computed_once():
    def function(x):
        first, second = x.mT.mT.unbind()
        return ((x.exp() + first).sum() + (x.exp() * 1 + x.unbind()[0] + second.view(3)).sum(),)

    x = torch.randn(2, 3)
    traced = TracedFunction(function, [torch.randn(2, 3)])
    assert torch.equal(traced([x])[0], function(x)[0])
    assert sorted(operations_of(traced)) == sorted(
        f"aten::{name}" for name in ["unbind", "exp", "add", "sum", "add", "sum", "add"]
    )


def test_views_that_only_look_alike_differ():
    def function(z, square):
        return z.conj() * z, square + square.mT, square[:1] + square[1:], torch.view_as_real(z)[:, 0] * z.real.abs()

    z, square = torch.randn(3, dtype=torch.complex64), torch.randn(2, 2)
    results = TracedFunction(function, [z, square])([2 * z, 3 * square])
    assert all(map(torch.equal, results, function(2 * z, 3 * square)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_numbers_give_the_bits_and_types_that_they_gave(dtype, shape):
    def function(x):
        numbers = 3, 0.1, 1e-30, -7, 2**24 + 1, float("inf"), 1, 1.0
        operators = torch.add, torch.sub, torch.mul, torch.div, torch.gt, torch.eq
        results = [operator(x, number) for number in numbers for operator in operators]
        return [*results, x * True, *(n - x for n in numbers), *(n / x for n in numbers), torch.where(x > 0.5, 0.1, x)]

    x = (10 * torch.randn(shape, dtype=torch.float64)).to(dtype)
    for result, expected in zip(TracedFunction(function, [torch.ones_like(x)])([x]), function(x), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result.nan_to_num(9.0), expected.nan_to_num(9.0))


def test_results_are_tensors_of_their_own():
    x = torch.randn(3)
    results = TracedFunction(lambda x: (x * 1, x * 2, x * 2, torch.full((), 0.5)), [torch.ones(3)])([x])
    for result in results:
        result.add_(1)
    assert torch.equal(results[1], 2 * x + 1)
    assert torch.equal(results[2], 2 * x + 1)
    assert torch.equal(results[0], x + 1)


def test_calls_joined_to_one_graph():
    weight = nn.Parameter(torch.ones(()))
    with torch.no_grad():
        scaled = TracedFunction(lambda x, y: (weight * x, y, x + y), [torch.ones(2), torch.ones(2)])
        handed = TracedFunction(lambda x: (x,), [torch.ones(2)])
        calls = TracedCalls(count=3)
        first = calls.add(scaled, [2, 0])
        second = calls.add(scaled, [first[2], *calls.add(handed, [first[1]])])
        calls.join([*second, first[0], 1])
        weight.mul_(3)
        x, y, z = torch.randn(2), torch.randn(5), torch.randn(2)
        results = calls([x, y, z])
    expected = 3 * (z + x), x, z + x + x, 3 * z, y
    assert all(map(torch.equal, results, expected))
    assert results[1] is x
    assert results[4] is y


def test_operators_with_lists_defaults_types_and_results_of_several_kinds():
    def function(x):
        low, high = x.aminmax(dim=1)
        parts = x.split([1, 2], dim=1)
        copied = x.to(torch.float64).clone(memory_format=torch.contiguous_format)
        picked = x[torch.tensor([1, 0]), :]
        return [low, high, *parts, copied, picked, x.sum(), x.sum([0, 1]), x.new_zeros([]), torch.where(x > 0, x, 0.5)]

    x = torch.randn(2, 3)
    for result, expected in zip(TracedFunction(function, [torch.ones(2, 3)])([x]), function(x), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("function", [lambda x: (x + 1,), lambda x: (x + torch.randn(3),)])
def test_the_search_for_garbage_goes_on_after_a_recording(function):
    for is_enabled in (False, True):
        (gc.enable if is_enabled else gc.disable)()
        try:
            with contextlib.suppress(UntraceableError):
                TracedFunction(function, [torch.ones(3)])
            assert gc.isenabled() is is_enabled
        finally:
            gc.enable()


def test_compiled_graphs_give_the_same_numbers():
    """Among the results are views of an argument and of another result."""

    def function(x, y):
        z = torch.zeros_like(x).add_(x)
        z.mul_(2)
        rows = (z * y).unbind()
        return z, *rows, x.mT, torch.aminmax(x)[0], x

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    with torch.no_grad():
        results = TracedFunction(function, [torch.ones(2, 3), torch.ones(2, 3)], compiled)([x, y])
    assert all(map(torch.equal, results, function(x, y)))
    assert results[-1] is x


def test_calls_of_other_graphs_are_made_in_turn():
    def build(program, examples):
        return module_of(program)

    double = TracedFunction(lambda x, y: (2 * x, y), [torch.ones(()), torch.ones(())], build)
    calls = TracedCalls(count=2)
    first, second = calls.add(double, [0, 1])
    calls.join([*calls.add(double, [first, second]), first])
    assert [x.item() for x in calls([torch.tensor(3.0), torch.tensor(5.0)])] == [12.0, 5.0, 6.0]


def random_function(seed):
    """A function of random operations, views among them, that returns some of its values."""
    random = Random(seed)
    unary = [torch.exp, torch.neg, torch.abs, torch.sqrt, torch.square, lambda x: x.clamp(-1.0, 2.0)]
    views = [
        lambda x: x.mT,
        lambda x: x.reshape(-1).view(x.shape),
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, ::2],
    ]
    binary = [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, lambda x, y: torch.lerp(x, y, y)]
    binary += [
        lambda x, y: torch.addcmul(x, y, x, value=-0.5),
        lambda x, y: 0.7 * x + y.sum(),
        lambda x, y: y.sum() * x,
    ]
    kinds = [random.choice([(unary, 1), (views, 1), (binary, 2), (binary, 2)]) for _ in range(40)]
    steps = [(random.choice(functions), [random.random() for _ in range(count)]) for functions, count in kinds]
    returned = random.sample(range(len(steps)), 6)

    def function(x, y):
        values = [x, y]
        for step, picks in steps:
            operands = [values[-1 - int(pick**2 * len(values))] for pick in picks]
            operands = [operand for operand in operands if operand.shape == operands[0].shape] * len(picks)
            values.append(step(*operands[: len(picks)]))
        return [values[2 + index] for index in returned]

    return function


@pytest.mark.parametrize("seed", range(100))
def test_memory_that_is_written_again_is_read_by_nobody(seed):
    function = random_function(seed)
    x, y = torch.rand(4, 4) + 0.5, torch.rand(4, 4)
    traced = TracedFunction(function, [x.clone(), y.clone()])
    kept = x.clone(), y.clone()
    results = traced([x, y])
    values = [result.clone() for result in results]
    traced([2 * x, 3 * y])
    for result, value, expected in zip(results, values, function(x, y), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(result, value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_operations_are_in_place_where_an_operand_is_not_read_again():
    def function(x):
        y = x.exp()  # in new memory, as x belongs to the caller
        kept = y * 2  # in new memory, as y is read below
        return (y + 1).sqrt() * kept, kept

    program = TracedFunction(function, [torch.ones(3)]).program
    names = [operation.function._schema.name for operation in overwriting(program.operations, program.layouts)]
    assert names == [f"aten::{name}" for name in ("exp", "mul", "add_", "sqrt_", "mul_")]


def test_a_number_keeps_its_precision_where_memory_is_written_again():
    def function(x):
        y = torch.zeros_like(x).add_(x)  # after an operation in place, numbers stay numbers
        return (y.exp() * 22.627416997969522 + 0.1,)

    for x in torch.linspace(0, 1, 50):
        assert torch.equal(TracedFunction(function, [torch.ones(())])([x])[0], function(x)[0])


def counted_run(lasting):
    """A run of ``x + exp(lasting)``, and a list of the values of ``lasting`` whose exponential was computed."""
    seen = []

    def first(value):
        seen.append(value.sum().item())
        return [value.exp()]

    run = HoistedRun(first, [0], lambda x, power: [x + power], [1, 2])
    return (lambda x: run(lasting, x)[0]), seen


@pytest.mark.parametrize("lasting", [torch.zeros(()), torch.zeros(3), torch.zeros(3, 2).mT[:1]])
def test_what_depends_on_lasting_inputs_follows_every_way_to_change_them(lasting):
    run, seen = counted_run(lasting)
    x = torch.ones_like(lasting)

    def sees(value, count):
        assert torch.equal(run(x), x + torch.full_like(x, value).exp())
        assert torch.equal(run(2 * x), 2 * x + torch.full_like(x, value).exp())
        assert len(seen) == count

    sees(0.0, 1)
    lasting.fill_(1.0)
    sees(1.0, 2)
    lasting.data.fill_(2.0)
    sees(2.0, 3)
    lasting.data = torch.full_like(lasting, 3.0)
    sees(3.0, 4)
    lasting.numpy()[...] = -0.0
    sees(0.0, 5)
    lasting.fill_(0.0)  # equal, with other bits
    sees(0.0, 6)


def test_an_equal_tensor_in_place_of_a_lasting_input_changes_nothing():
    seen = []
    run = HoistedRun(lambda x: [seen.append(1) or x.exp()], [0], lambda y, power: [y * power], [1, 2])
    for value, count in ((1.0, 1), (1.0, 1), (2.0, 2)):
        assert torch.equal(run(torch.tensor(value), torch.ones(2))[0], torch.tensor(value).exp().expand(2))
        assert len(seen) == count


def test_results_that_depend_on_lasting_arguments_alone_are_new_tensors_at_each_call():
    weight = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        function = TracedFunction(
            lambda x, y: (x.exp() + weight, (x.exp() + weight).view(2) * y), [torch.ones(2), torch.ones(2)]
        )
        calls = TracedCalls(count=2)
        first, second = calls.add(function, [0, 1])
        calls.join([first, second, *calls.add(function, [first, 1])], lasting=[0])
        x, y = torch.zeros(2), torch.ones(2)
        for _ in range(2):
            results = calls([x, y])
            assert torch.equal(results[0], torch.full((2,), 2.0))
            assert torch.equal(results[1], torch.full((2,), 2.0))
            assert torch.equal(results[2], torch.full((2,), 2.0).exp() + 1)
            for result in results:
                result.zero_()
        weight.data.add_(1)
        x.add_(1)
        assert torch.equal(calls([x, y])[0], x.exp() + 2)


def test_where_graphs_cannot_be_joined_they_are_called_in_turn(monkeypatch):
    monkeypatch.setattr(ScriptRun, "joins", False)
    test_calls_joined_to_one_graph()
