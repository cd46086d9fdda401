"""What depends on rarely changing inputs is computed only when these inputs change (loop-invariant code motion)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import is_

import torch
from torch import Tensor

from lightning_lopt.operations import Operation, Program, Run, may_alias

MOST_ENTRIES = 2**6
"""Most entries of an input whose value is compared at each call."""


def divided(program: Program, lasting: Collection[int], returned: Collection[int] = ()) -> tuple[Program, Program]:
    """Two programs that together compute what a program computes.

    The first one has the operations that depend on lasting inputs and constants alone. Its outputs are further inputs
    of the second one, which has the outputs of ``program`` that the first one does not compute.

    Args:
        program: the operations.
        lasting: places of the inputs that rarely change.
        returned: places of outputs that the second program computes in any case.

    >>> from lightning_lopt.operations import Place, aten
    >>> operations = [
    ...     Operation(aten.exp.default, ([Place(0)], {}), [2], False),
    ...     Operation(aten.mul.Tensor, ([Place(1), Place(2)], {}), [3], False),
    ... ]
    >>> first, second = divided(Program(operations, [0, 1], [3], {}), lasting=[0])
    >>> first.inputs, first.outputs, second.inputs, second.outputs
    ([0], [2], [1, 2], [3])
    """
    first, second = _divided_operations(program, lasting, returned)
    made = {place for operation in first for place in operation.results}
    outputs = [place for place in program.outputs if place not in made]
    needed = {place for operation in second for place in operation.input_places}.union(program.outputs)
    handed = sorted(made & needed)
    handed_memory = {program.layouts[place].memory for place in handed if place in program.layouts}
    layouts = {
        place: layout._replace(memory=None) if layout.memory in handed_memory else layout
        for place, layout in program.layouts.items()
    }
    program = program._replace(layouts=layouts)
    return _part(program, first, program.inputs, handed), _part(program, second, [*program.inputs, *handed], outputs)


def _divided_operations(
    program: Program, lasting: Collection[int], returned: Collection[int]
) -> tuple[list[Operation], list[Operation]]:
    operations, kept = program.operations, set(returned)
    if any(operation.mutates for operation in operations):
        return [], operations
    for operation in reversed(operations):
        if may_alias(operation.function) and not kept.isdisjoint(operation.results):
            kept.update(operation.input_places)
    first: list[Operation] = []
    second: list[Operation] = []
    steady = {*lasting, *program.constants}
    for operation in operations:
        is_first = steady.issuperset(operation.input_places) and kept.isdisjoint(operation.results)
        (first if is_first else second).append(operation)
        steady.update(operation.results if is_first else ())
    return first, second


def _part(program: Program, operations: list[Operation], available: Sequence[int], outputs: list[int]) -> Program:
    """Some operations of a program, with those of the available inputs that they or the outputs need."""
    read = {place for operation in operations for place in operation.input_places}.union(outputs)
    constants = {place: x for place, x in program.constants.items() if place in read}
    return Program(operations, [place for place in available if place in read], outputs, constants, program.layouts)


class HoistedRun:
    """Two functions in turn; the first one runs only if the values of its inputs have changed since the last call.

    Args:
        first: function of small tensors.
        first_inputs: indices of its inputs among the arguments.
        second: function of arguments and of the results of ``first``.
        second_inputs: indices of its inputs among the arguments and, after them, the results of ``first``.

    >>> run = HoistedRun(lambda x: [x.exp()], [0], lambda y, power: [y * power], [1, 2])
    >>> run(torch.zeros(()), torch.ones(2)), run(torch.zeros(()), torch.full((2,), 3.0))
    ([tensor([1., 1.])], [tensor([3., 3.])])
    """

    def __init__(self, first: Run, first_inputs: Sequence[int], second: Run, second_inputs: Sequence[int]) -> None:
        self._first, self._first_inputs = first, first_inputs
        self._second, self._second_inputs = second, second_inputs
        self._bytes = _Bytes()
        self._last_bytes: Tensor | None = None
        self._handed: Sequence[Tensor] = ()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        inputs = [tensors[index] for index in self._first_inputs]
        present_bytes = self._bytes.of(inputs)
        if self._last_bytes is None or not torch.equal(present_bytes, self._last_bytes):
            self._handed, self._last_bytes = self._first(*inputs), present_bytes
        available = (*tensors, *self._handed)
        return self._second(*[available[index] for index in self._second_inputs])


class _Bytes:
    """Reads the values of small tensors, in a third of the time if they are the same tensors as at the last call."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._pointers: list[int] = []
        self._views: list[Tensor] = []

    def of(self, tensors: list[Tensor]) -> Tensor:
        """The bytes of all tensors in turn, shape (n,); they also change if a tensor is written through ``x.data``."""
        if not tensors:
            return torch.empty(0, dtype=torch.uint8)
        pointers = [x.data_ptr() for x in tensors]
        if pointers != self._pointers or not all(map(is_, tensors, self._tensors)):
            flat = [x.detach().contiguous().reshape(-1) for x in tensors]
            views = [x.view(torch.uint8) for x in flat]
            if any(x.data_ptr() != pointer for x, pointer in zip(flat, pointers, strict=True)):
                return torch.cat(views)  # a copy does not follow its tensor
            self._tensors, self._pointers, self._views = tensors, pointers, views
        return torch.cat(self._views)
