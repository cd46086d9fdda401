"""Several traced graphs that run in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_lopt.operations import Run
from lightning_lopt.script_graphs import ScriptRun, interpreted_in_turn
from lightning_lopt.tracing import TracedFunction

Value = int | tuple[int, int]
"""The index of an argument, or a pair: the number of a call, and the index of a result of the call's graph."""


class TracedCalls:
    """Several calls of traced functions that run in one call; a call may use results of earlier calls.

    TorchScript graphs are joined to a single graph. This graph gives the same bits, and Python calls it only once.
    Graphs of other kinds are called in turn.

    >>> import torch
    >>> double = TracedFunction(lambda x: (2 * x,), [torch.ones(())])
    >>> calls = TracedCalls(count=1)
    >>> calls.join(calls.add(double, calls.add(double, [0])))
    >>> calls([torch.tensor(3.0)])
    [tensor(12.)]

    Args:
        count: number of arguments.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: list[tuple[TracedFunction, list[Value]]] = []
        self._captured: list[Tensor] = []

    def add(self, function: TracedFunction, arguments: Sequence[Value]) -> list[Value]:
        """Add a call, and return its results."""
        number = len(self._calls)
        self._calls.append((function, list(arguments)))
        return [arguments[index] if is_argument else (number, index) for is_argument, index in function.results]

    def join(self, results: Sequence[Value]) -> None:
        """Prepare the calls; ``results`` are the values that each call of this object returns."""
        computed = list(dict.fromkeys(value for value in results if isinstance(value, tuple)))
        captured = {id(x): x for function, _ in self._calls for x in function.captured}
        self._captured = list(captured.values())
        self._results = [(isinstance(x, int), x if isinstance(x, int) else computed.index(x)) for x in results]
        place_of_captured = {key: self._count + index for index, key in enumerate(captured)}
        values: list[Value] = [*range(self._count + len(captured))]
        first, inputs = len(values), []
        for number, (function, arguments) in enumerate(self._calls):
            argument_places = [values.index(arguments[index]) for index in function.argument_indices]
            inputs.append([*argument_places, *(place_of_captured[id(x)] for x in function.captured)])
            values += [(number, index) for index in range(len(function.program.outputs))]
        outputs = [values.index(value) for value in computed]
        runs = [function.run for function, _ in self._calls]
        calls = [(run, indices) for run, indices in zip(runs, inputs, strict=True) if run is not None]
        scripts = [(run, indices) for run, indices in calls if isinstance(run, ScriptRun)]
        is_joined = ScriptRun.joins and len(scripts) == len(calls)
        self._run: Run = interpreted_in_turn(scripts, first, outputs) if is_joined else _in_turn(calls, outputs)

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The results; a result that is an argument is the same tensor object."""
        computed = self._run(*arguments, *self._captured)
        return [arguments[index] if is_argument else computed[index] for is_argument, index in self._results]


def _in_turn(calls: Sequence[tuple[Run, list[int]]], outputs: Sequence[int]) -> Run:
    """A function that makes several calls in turn.

    The arguments have the first indices; the results of the calls follow in order.
    """

    def run(*tensors: Tensor) -> list[Tensor]:
        values = list(tensors)
        for function, inputs in calls:
            values += function(*[values[index] for index in inputs])
        return [values[index] for index in outputs]

    return run
