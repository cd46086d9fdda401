"""Recorded operations compiled by inductor (the compiler behind ``torch.compile``), without guards."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from lightning_lopt.operations import Place, Program, Run, mapped
from lightning_lopt.tracing import same_bits


def compiled(program: Program, examples: Sequence[Tensor]) -> Run:
    """A function that runs a program in fewer kernels; the numbers are the same up to rounding.

    On a CPU the kernels are called from C++. On CUDA, kernels that do not depend on each other are combined.

    Args:
        program: the operations.
        examples: tensors with the shapes, types, devices and strides that the arguments of all later calls have.

    Raises:
        Exception: if compiling fails, for instance without a C++ compiler; the exception may have any type.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # takes a second

    graphs: list[Any] = []

    def compile_inner(*arguments: Any, **options: Any) -> Any:
        graphs.append(compile_fx_inner(*arguments, **options))
        return graphs[-1]

    on_cpu = all(x.device.type == "cpu" for x in examples)
    options = {"cpp_wrapper": True} if on_cpu else {"combo_kernels": True}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor warns about its lowerings
        module = module_of(program)
        function: Any = compile_fx(module, list(examples), inner_compile=compile_inner, config_patches=options)
        expected = function(*examples)  # inductor compiles some parts only at the first call
    # Autograd adds code around the kernels. This code has no effect here, and takes as long as kernels of small stacks.
    kernels: Any = getattr(graphs[0], "current_callable", None) if len(graphs) == 1 else None
    if kernels is None:
        return cast(Run, function)

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        results: Sequence[Tensor] = kernels(list(tensors))
        return results

    results = run(*examples)
    is_same = len(results) == len(expected) and all(map(same_bits, results, expected))
    return run if is_same else function


def module_of(program: Program) -> fx.GraphModule:
    """A program as a module whose arguments and results are tensors.

    >>> from lightning_lopt.operations import Operation
    >>> double = Operation(torch.ops.aten.mul.Tensor, ([Place(0), 2.0], {}), [1], False)
    >>> module_of(Program([double], [0], [1], {}))(torch.ones(2))
    (tensor([2., 2.]),)
    """
    graph = fx.Graph()
    nodes = {place: graph.placeholder(f"input_{place}") for place in program.inputs}

    def node_of(x: Place) -> fx.Node:
        return nodes[x.place]

    for function, (arguments, options), results, _ in program.operations:
        node_arguments = mapped(Place, node_of, (tuple(arguments), options))
        node = graph.call_function(function, *node_arguments)
        returns = function._schema.returns
        if len(returns) == 1 and not isinstance(returns[0].type, torch._C.ListType):
            nodes[results[0]] = node
        else:
            parts = [graph.call_function(operator.getitem, (node, index)) for index in range(len(results))]
            nodes.update(zip(results, parts, strict=True))
    graph.output(tuple(nodes[place] for place in program.outputs))
    return fx.GraphModule(torch.nn.Module(), graph)
