"""A function of tensors recorded as a graph, which the interpreter of TorchScript runs without Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.jit import optimized_execution  # type: ignore[attr-defined]


class UntraceableError(Exception):
    """A function that a graph cannot stand for; the message says why."""


class TracedFunction:
    """The operations that a function made on given tensors, to be made again on others: the same kernels, so the same
    bits, at about a third of the cost of calling small operations from Python.

    ``vmap`` and whatever else wraps tensors is gone from the graph. Tensors that the function reads beside its
    arguments, as θ is, are read anew at each call, so they may change in place. Numbers and branches are those of the
    recording. No generator of random numbers is touched.

    Args:
        function: of tensors, to tensors; it writes into no argument.
        arguments: tensors of the shapes and types of all later ones.

    Raises:
        UntraceableError: if the function draws random numbers, reads the value of a tensor, or otherwise cannot be
            traced; or if the graph gives other bits than the function on ``arguments``.

    >>> weight = torch.ones(())
    >>> scaled = TracedFunction(lambda x, y: (weight * x, y), [torch.ones(2), torch.ones(3)])
    >>> y = torch.zeros(3)
    >>> weight.fill_(2.0)
    tensor(2.)
    >>> results = scaled([torch.ones(2), y])
    >>> results[0], results[1] is y
    (tensor([2., 2.]), True)
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> None:
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", r"`torch\.jit\.trace` is", DeprecationWarning)
                expected = function(*arguments)
                self._record(make_fx(function)(*arguments), arguments)
                results = self(arguments)
        except Exception as error:  # tracers fail in many ways
            raise UntraceableError(f"{type(error).__name__}: {error}") from error
        if not all(map(_same_bits, results, expected)):
            raise UntraceableError("what was traced gives other numbers than the function itself")

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The results of the function; one that is an argument is that very tensor."""
        if self._script is None:
            return [arguments[~index] for index in self._results]
        given = [arguments[index] for index in self._read]
        # no optimisation, which may change bits, and nothing of autograd, which every operation would pass through
        with optimized_execution(False), torch._C._AutoDispatchBelowAutograd():
            computed = self._script(*given, *self._beside)
        return [computed[index] if index >= 0 else arguments[~index] for index in self._results]

    def _record(self, module: fx.GraphModule, arguments: Sequence[Tensor]) -> None:
        graph = module.graph
        graph.eliminate_dead_code()
        _check(graph)
        _drop_views(graph)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._beside = _inputs_for_attributes(module)
        (output,) = (node for node in graph.nodes if node.op == "output")
        results = list(output.args[0])
        computed = list(dict.fromkeys(node for node in results if node not in inputs))
        output.args = (tuple(computed),)
        # the index of what is computed, or ~index of the argument
        self._results = [~inputs.index(node) if node in inputs else computed.index(node) for node in results]
        self._read = [index for index, node in enumerate(inputs) if node.users]
        for node in inputs:
            if not node.users:
                graph.erase_node(node)
        module.recompile()
        examples = tuple(arguments[index] for index in self._read) + tuple(self._beside)
        self._script: Any = None
        if computed:

            def forward(*tensors: Tensor) -> Any:  # a call of a function costs less than one of a module
                return module(*tensors)

            self._script = torch.jit.trace(forward, examples, check_trace=False)  # type: ignore[no-untyped-call]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, in a third of the time of ``module.parameters()``."""
    holders = [holder for part in module.modules() for holder in (part._parameters, part._buffers) if holder]
    return [x for holder in holders for x in holder.values() if x is not None]


def _check(graph: fx.Graph) -> None:
    """Refuse operations whose results depend on more than their arguments."""
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise ValueError(f"{node.target} draws random numbers")
        if node.target is torch.ops.aten.as_strided.default:
            raise ValueError(f"{node.target} depends on how its argument lies in memory")


def _drop_views(graph: fx.Graph) -> None:
    """Take out views that have the shape of what they view."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            viewed = node.args[0]
            if viewed.meta["val"].shape == node.meta["val"].shape and viewed.op != "placeholder":
                node.replace_all_uses_with(viewed)
                graph.erase_node(node)


def _inputs_for_attributes(module: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds further inputs of it, and return them."""
    graph, held = module.graph, list[Tensor]()
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in list(graph.nodes):
        if node.op == "get_attr":
            with graph.inserting_before(first):
                given = graph.placeholder(f"held_{len(held)}")
            held.append(getattr(module, node.target))
            node.replace_all_uses_with(given)
            graph.erase_node(node)
    return held


def _same_bits(result: Tensor, expected: Tensor) -> bool:
    alike = result.shape == expected.shape and result.dtype == expected.dtype
    if not alike or not result.is_floating_point():
        return alike and torch.equal(result, expected)
    return torch.allclose(result, expected, rtol=0, atol=0, equal_nan=True)
