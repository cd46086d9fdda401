"""Recorded operations as a TorchScript graph; the interpreter of TorchScript runs the graph without Python."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.memory_reuse import IN_PLACE, overwriting
from lightning_lopt.operations import WITH_TENSOR, Operation, Place, Program

_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
_NUMBERS = {
    memory_format: number
    for number, memory_format in enumerate(
        (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
    )
}
"""The numbers of memory formats in TorchScript (c10::MemoryFormat)."""

NUMBER_OR_TENSOR = frozenset(form for operator in WITH_TENSOR.values() for form in (operator, IN_PLACE.get(operator)))
"""Operators that TorchScript also has with a number in place of the second tensor."""


def interpreted(program: Program, examples: Sequence[Tensor] = ()) -> ScriptRun:
    """A function that runs a program in the interpreter of TorchScript: the same kernels, so the same bits.

    The graph is built operation by operation, in a tenth of the time of ``torch.jit.trace``.

    Raises:
        RuntimeError: if TorchScript has no operator of that name.

    >>> double = Operation(torch.ops.aten.mul.Tensor, ([Place(0), 2.0], {}), [1], False)
    >>> interpreted(Program([double], [0], [1], {}))(torch.ones(2))
    [tensor([2., 2.])]
    """
    builder = _Builder()
    values = {place: builder.graph.addInput() for place in program.inputs}
    values |= {place: builder.graph.insertConstant(x) for place, x in program.constants.items()}
    for operation in overwriting(program.operations, program.layouts) if program.layouts else program.operations:
        builder.add(operation, values)
    return ScriptRun(builder.graph, [values[place] for place in program.outputs])


def interpreted_in_turn(calls: Sequence[ScriptCall], inputs: Sequence[int], outputs: Sequence[int]) -> ScriptRun:
    """One graph that calls several functions in turn.

    Args:
        calls: the functions in their order.
        inputs: places of the arguments.
        outputs: places of the results.
    """
    graph: Any = torch._C.Graph()
    values = {place: graph.addInput() for place in inputs}
    for run, input_places, output_places in calls:
        (results,) = graph.insertGraph(run.graph, [values[place] for place in input_places])
        unpacked = graph.insertNode(graph.create("prim::ListUnpack", [results], run.count)).outputs()
        values.update(zip(output_places, unpacked, strict=True))
    return ScriptRun(graph, [values[place] for place in outputs])


class ScriptRun:
    """A graph as a function, which returns a list of tensors.

    Attributes:
        graph: its only output is the list.
        count: number of tensors in the list.
    """

    joins: ClassVar[bool] = hasattr(torch._C.Graph, "insertGraph")
    """Whether this version of torch can join graphs."""

    def __init__(self, graph: Any, outputs: Sequence[Any]) -> None:
        self.graph, self.count = graph, len(outputs)
        graph.registerOutput(_node(graph, "prim::ListConstruct", outputs, torch._C.ListType.ofTensors()))
        self._function = torch._C._create_function_from_graph("program", graph)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        # Optimisation may change bits. Autograd would cost time at every operation.
        was_optimizing = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)
        try:
            with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(_VIEWS):
                results: Sequence[Tensor] = self._function(*tensors)
        finally:
            torch._C._set_graph_executor_optimize(was_optimizing)
        return results


class _Argument(NamedTuple):
    """An argument of an operator.

    Attributes:
        name: name of the argument.
        default: default value.
        kind: type of the value; for a list, the type of its entries.
        list_kind: type of the list; ``None`` if the value is not a list.
    """

    name: str
    default: Any
    kind: Any
    list_kind: Any


ScriptCall = tuple[ScriptRun, Sequence[int], Sequence[int]]
"""A function with the places of its inputs and of its results."""


@cache
def _signature(function: Any) -> tuple[str, list[_Argument], Any]:
    """Name and arguments of an operator, and the type of its result if the result is a list."""
    schema, arguments = function._schema, []
    for x in schema.arguments:
        kind = _required(x.type)
        is_list = isinstance(kind, torch._C.ListType)
        entry = _required(kind.getElementType()) if is_list else kind
        arguments.append(_Argument(x.name, x.default_value, type(entry), kind if is_list else None))
    list_kinds = [x.type for x in schema.returns if isinstance(x.type, torch._C.ListType)]
    return schema.name, arguments, list_kinds[0] if list_kinds else None


def _required(kind: Any) -> Any:
    return kind.getElementType() if isinstance(kind, torch._C.OptionalType) else kind


class _Builder:
    """Adds operations to a graph."""

    def __init__(self) -> None:
        self.graph: Any = torch._C.Graph()
        self._constants: dict[Hashable, Any] = {}

    def add(self, operation: Operation, values: dict[int, Any]) -> None:
        """Add an operation to the graph, and its results to ``values`` (the values of the graph by place)."""
        function, (positional, options), results, _ = operation
        name, arguments, list_kind = _signature(function)
        inputs = []
        for index, (key, default, kind, argument_list_kind) in enumerate(arguments):
            value = positional[index] if index < len(positional) else options.get(key, default)
            if isinstance(value, Place):
                inputs.append(values[value.place])
            elif argument_list_kind is not None and isinstance(value, list | tuple):
                entries = [values[x.place] if isinstance(x, Place) else self._constant(x, kind) for x in value]
                inputs.append(_node(self.graph, "prim::ListConstruct", entries, argument_list_kind))
            else:
                inputs.append(self._constant(value, kind, takes_number=function in NUMBER_OR_TENSOR))
        if list_kind is not None:
            name, inputs = "prim::ListUnpack", [_node(self.graph, name, inputs, list_kind)]
        node = self.graph.insertNode(self.graph.create(name, inputs, len(results)))
        # a list of all outputs takes 10 µs
        values.update(zip(results, [node.output()] if len(results) == 1 else list(node.outputs()), strict=True))

    def _constant(self, value: Any, kind: type, takes_number: bool = False) -> Any:
        if isinstance(value, torch.memory_format):
            value = _NUMBERS[value]
        elif kind is torch.TensorType and value is not None and (isinstance(value, bool) or not takes_number):
            # the operator needs a tensor, but the value is a number
            value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        elif kind is torch.FloatType and isinstance(value, int):
            value = float(value)
        key = type(value), repr(value)
        if key not in self._constants:
            self._constants[key] = self.graph.insertConstant(value)
        return self._constants[key]


def _node(graph: Any, name: str, inputs: Sequence[Any], kind: Any) -> Any:
    """Add a node with one result of type ``kind``, and return this result."""
    output = graph.insertNode(graph.create(name, inputs, 1)).output()
    output.setType(kind)
    return output
