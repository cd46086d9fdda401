"""Several graphs behind one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_lopt.tracing import TracedFunction, as_recorded, scripted

Value = int | tuple[int, int]
"""The index of an argument, or the number of a call and the index among the results of its graph."""


class TracedCalls:
    """Calls of traced functions, of which some take results of others, as a single graph.

    The graph of each function stays as it is, so the bits do; what is saved are the ways from Python and back.

    >>> import torch
    >>> double = TracedFunction(lambda x: (2 * x,), [torch.ones(())])
    >>> calls = TracedCalls(count=1)
    >>> calls.join(calls.add(double, calls.add(double, [0])), [torch.ones(())])
    >>> calls([torch.tensor(3.0)])
    [tensor(12.)]

    Args:
        count: number of arguments.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: list[tuple[TracedFunction, list[Value]]] = []
        self._beside: list[Tensor] = []

    def add(self, function: TracedFunction, arguments: Sequence[Value]) -> list[Value]:
        """The results of a call."""
        number = len(self._calls)
        self._calls.append((function, list(arguments)))
        return [arguments[index] if is_argument else (number, index) for is_argument, index in function.results]

    def join(self, results: Sequence[Value], examples: Sequence[Tensor]) -> None:
        """Make the graph, whose results are these values, for arguments like ``examples``."""
        computed = list(dict.fromkeys(value for value in results if isinstance(value, tuple)))
        beside = {id(x): x for function, _ in self._calls for x in function.beside}
        self._beside = list(beside.values())
        self._results = [(isinstance(x, int), x if isinstance(x, int) else computed.index(x)) for x in results]

        def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
            values: dict[Value, Tensor] = dict(enumerate(tensors[: self._count]))
            others = dict(zip(beside, tensors[self._count :], strict=True))
            for number, (function, arguments) in enumerate(self._calls):
                if function.script is not None:
                    inputs = [values[arguments[index]] for index in function.read]
                    made = function.script(*inputs, *(others[id(x)] for x in function.beside))
                    values.update(((number, index), x) for index, x in enumerate(made))
            return tuple(values[value] for value in computed)

        with as_recorded():
            self._script = scripted(replay, [*examples, *self._beside])

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The results; a result that is an argument is the same tensor object."""
        with as_recorded():
            computed = self._script(*arguments, *self._beside)
        return [arguments[index] if is_argument else computed[index] for is_argument, index in self._results]
