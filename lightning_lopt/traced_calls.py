"""Several traced graphs that run in one call."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from torch import Tensor

from lightning_lopt.hoisting import MOST_ENTRIES, HoistedRun
from lightning_lopt.operations import Run
from lightning_lopt.script_graphs import ScriptCall, ScriptRun, interpreted_in_turn
from lightning_lopt.tracing import TracedFunction

Value = int | tuple[int, int]
"""The index of an argument, or a pair: the number of a call, and the index of a result of the call's graph."""


class TracedCalls:
    """Several calls of traced functions that run in one call; a call may use results of earlier calls.

    TorchScript graphs are joined to a single graph. This graph gives the same bits, and Python calls it only once. What
    depends on arguments and parameters that rarely change becomes a graph of its own
    (:class:`~lightning_lopt.hoisting.HoistedRun`). Graphs of other kinds are called in turn.

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

    def join(self, results: Sequence[Value], lasting: Collection[int] = ()) -> None:
        """Prepare the calls.

        Args:
            results: the values that each call of this object returns.
            lasting: indices of small arguments that rarely change, see :class:`~lightning_lopt.hoisting.HoistedRun`.
        """
        computed = list(dict.fromkeys(value for value in results if isinstance(value, tuple)))
        captured = {id(x): x for function, _ in self._calls for x in function.captured}
        self._captured = list(captured.values())
        self._results = [(isinstance(x, int), x if isinstance(x, int) else computed.index(x)) for x in results]
        place_of_captured = {key: self._count + index for index, key in enumerate(captured)}
        places: dict[Value, int] = {index: index for index in range(self._count + len(captured))}
        calls = []
        for number, (function, arguments) in enumerate(self._calls):
            inputs = [places[arguments[index]] for index in function.argument_indices]
            inputs += [place_of_captured[id(x)] for x in function.captured]
            outputs = [len(places) + index for index in range(len(function.program.outputs))]
            places |= {(number, index): place for index, place in enumerate(outputs)}
            calls.append((function, inputs, outputs))
        result_places = [places[value] for value in computed]
        if ScriptRun.joins and all(function.is_script for function, _ in self._calls):
            steady = [*lasting, *(place_of_captured[id(x)] for x in self._captured if x.numel() <= MOST_ENTRIES)]
            self._run: Run = _hoisted(calls, self._count + len(captured), result_places, steady)
        else:
            self._run = _in_turn(calls, result_places)

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The results; a result that is an argument is the same tensor object."""
        computed = self._run(*arguments, *self._captured)
        return [arguments[index] if is_argument else computed[index] for is_argument, index in self._results]


PlacedCall = tuple[TracedFunction, list[int], list[int]]
"""A function with the places of the inputs and outputs of its program among all tensors of several calls."""


def _in_turn(calls: Sequence[PlacedCall], results: Sequence[int]) -> Run:
    """A function that makes several calls in turn; its arguments have the first places."""

    runs = [(function.run, inputs, outputs) for function, inputs, outputs in calls]

    def run(*tensors: Tensor) -> list[Tensor]:
        values = dict(enumerate(tensors))
        for function, inputs, outputs in runs:
            if function is not None:
                values.update(zip(outputs, function(*[values[place] for place in inputs]), strict=True))
        return [values[place] for place in results]

    return run


def _hoisted(calls: Sequence[PlacedCall], count: int, results: Sequence[int], lasting: Sequence[int]) -> Run:
    """Two joined graphs: one for what depends on lasting arguments alone, and one for the rest.

    Args:
        calls: functions whose graphs are TorchScript graphs.
        count: number of arguments, which have the first places.
        results: places of the results.
        lasting: places of the lasting arguments.
    """
    steady, returned = set(lasting), set(results)
    new_places = itertools.count(1 + max([count, *(place for _, _, outputs in calls for place in outputs)]))
    first_calls: list[ScriptCall] = []
    second_calls: list[ScriptCall] = []
    handed: list[int] = []
    for function, inputs, outputs in calls:
        # In its program, a function has its own numbers for tensors.
        input_places = dict(zip(function.program.inputs, inputs, strict=True))
        output_places = dict(zip(function.program.outputs, outputs, strict=True))
        first, second = function.divided(
            frozenset(number for number, place in input_places.items() if place in steady),
            frozenset(number for number, place in output_places.items() if place in returned),
        )
        handed_places = {number: output_places.get(number, next(new_places)) for number in first.program.outputs}
        steady.update(handed_places.values())
        handed += handed_places.values()
        if first.program.outputs:
            first_calls.append((first.run, [input_places[x] for x in first.program.inputs], [*handed_places.values()]))
        input_places |= handed_places
        if second.program.outputs:
            results_of_second = [output_places[x] for x in second.program.outputs]
            second_calls.append((second.run, [input_places[x] for x in second.program.inputs], results_of_second))
    first_inputs = _read_by(first_calls, range(count))
    available = [*range(count), *handed]
    second_inputs = _read_by(second_calls, available)
    return HoistedRun(
        interpreted_in_turn(first_calls, first_inputs, handed),
        first_inputs,
        interpreted_in_turn(second_calls, second_inputs, results),
        [available.index(place) for place in second_inputs],
    )


def _read_by(calls: Sequence[ScriptCall], places: Sequence[int]) -> list[int]:
    """Those of some places that are inputs of calls."""
    read = {place for _, inputs, _ in calls for place in inputs}
    return [place for place in places if place in read]
