"""Functions of tensors traced to graphs that run without Python."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_lopt.hoisting import divided
from lightning_lopt.memory_reuse import layouts_of
from lightning_lopt.operations import ALIASES, Operation, Place, Program, Run, Shortened, live_operations, mapped
from lightning_lopt.script_graphs import ScriptRun, interpreted

BuildRun = Callable[[Program, Sequence[Tensor]], Run]
"""A function that builds a :data:`Run` from a program and example tensors (shapes and types of all later arguments)."""


class UntraceableError(Exception):
    """A function cannot be represented by a graph; the message says why."""


class ProgramPart(NamedTuple):
    """A part of a recorded function: its program, and a function that runs the program."""

    program: Program
    run: ScriptRun


class TracedFunction:
    """The operations of a function, recorded on example tensors, for calls with other tensors.

    By default the same kernels run, so the bits are the same. Small operations take about a third of their time in
    Python.

    The graph contains no ``vmap`` and no other wrapper of tensors. Each call reads the present values of the tensors
    that the function uses besides its arguments (for instance θ), so these tensors may change in place. Numbers and
    branches are fixed by the recording. No random generator is used.

    Args:
        function: function from tensors to tensors; it must not write into tensors that it has not made.
        arguments: example tensors with the shapes and types of all later arguments.
        build: function that builds a :data:`Run` from the recorded operations. Any function but :func:`interpreted` may
            give other bits, and then later arguments must have the strides of ``arguments``, too.
        check: whether to compare the bits of the graph with those of the function. Without a check, which is for
            :func:`interpreted` only, the caller compares them.

    Attributes:
        program: the operations, on some of the arguments and on ``captured``.
        argument_indices: indices of the arguments that the program uses.
        captured: tensors that the function reads besides its arguments.
        results: for each result, whether it is an argument, and its index among the arguments or among the results of
            the program.
        is_script: whether the graph is a graph of TorchScript.

    Raises:
        UntraceableError: if the function draws random numbers, reads the value of a tensor, or cannot be traced for
            another reason; or if the graph and the function give different bits on ``arguments``.

    >>> weight = torch.ones(())
    >>> scaled = TracedFunction(lambda x, y: (weight * x, y), [torch.ones(2), torch.ones(3)])
    >>> y = torch.zeros(3)
    >>> weight.fill_(2.0)
    tensor(2.)
    >>> results = scaled([torch.ones(2), y])
    >>> results[0], results[1] is y
    (tensor([2., 2.]), True)
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        arguments: Sequence[Tensor],
        build: BuildRun = interpreted,
        *,
        check: bool = True,
    ) -> None:
        self.is_script = build is interpreted
        self._run: Run | None = None
        self._parts: dict[tuple[frozenset[int], frozenset[int]], tuple[ProgramPart, ProgramPart]] = {}
        try:
            with torch.random.fork_rng(devices=[]), _collection_paused():
                expected = function(*arguments) if check else ()
                with _Recording(arguments) as recording:
                    results = function(*arguments)
                self._take(recording, results, shorter=self.is_script)
                if check and self.program.outputs:
                    examples = [*(arguments[index] for index in self.argument_indices), *self.captured]
                    self._run = build(self.program, [x.detach() for x in examples])
                if check and self.is_script:
                    results = self(arguments)
                bits_are_equal = not check or all(map(same_bits, results, expected))
        except Exception as error:  # any error of an operation that cannot be recorded
            raise UntraceableError(f"{type(error).__name__}: {error}") from error
        if not bits_are_equal:
            raise UntraceableError("the traced graph gives other values than the function")

    @property
    def run(self) -> Run | None:
        """A function that runs the program, built at its first use if it was not checked; ``None`` if nothing is
        computed."""
        if self._run is None and self.program.outputs:
            self._run = interpreted(self.program)
        return self._run

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """The results of the function; a result that is an argument is the same tensor object."""
        computed: Sequence[Tensor] = ()
        run = self.run
        if run is not None:
            computed = run(*[arguments[index] for index in self.argument_indices], *self.captured)
        return [arguments[index] if is_argument else computed[index] for is_argument, index in self.results]

    def divided(self, lasting: frozenset[int], returned: frozenset[int]) -> tuple[ProgramPart, ProgramPart]:
        """The two parts of the program, see :func:`~lightning_lopt.hoisting.divided`, as graphs of TorchScript."""
        if (lasting, returned) not in self._parts:
            first, second = divided(self.program, lasting, returned)
            self._parts[lasting, returned] = (
                ProgramPart(first, interpreted(first)),
                ProgramPart(second, interpreted(second)),
            )
        return self._parts[lasting, returned]

    def _take(self, recording: _Recording, results: Sequence[Tensor], *, shorter: bool) -> None:
        """Store the operations that the results depend on; merge equal calls if ``shorter``."""
        count = recording.count
        places = [recording.place_of(result) for result in results]
        computed = list(dict.fromkeys(place for place in places if place >= count))
        operations, constants, shortened = recording.operations, {}, None
        if shorter:
            shortened = Shortened(operations, recording.tensors, computed)
            operations, constants = shortened.operations, shortened.constants
        operations = live_operations(operations, computed)
        live_places = {place for operation in operations for place in operation.input_places} | set(computed)
        captured = [place for place in recording.captured if place in live_places]
        self.argument_indices = [place for place in range(count) if place in live_places]
        self.captured = [recording.tensors[place] for place in captured]
        self.results = [(place < count, place if place < count else computed.index(place)) for place in places]
        constants = {place: x for place, x in constants.items() if place in live_places}
        layouts = {}
        if shortened is not None:
            visible = {*range(count), *captured, *constants, *computed}
            layouts = layouts_of(operations, shortened.tensors, visible, shortened.renamed)
        self.program = Program(operations, [*self.argument_indices, *captured], computed, constants, layouts)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the calls of operators, below ``vmap`` and autograd.

    Attributes:
        tensors: all tensors by place, the arguments first; the references keep the ids of the tensors unique.
        count: number of arguments.
        captured: places of tensors that are neither arguments nor results of an operator.
        operations: calls in their order.
    """

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}
        for argument in arguments:
            self._add(argument)
        self.count = len(arguments)
        self.captured: list[int] = []
        self.operations: list[Operation] = []

    def place_of(self, tensor: Tensor) -> int:
        """The place of a tensor; a tensor without one gets a new place in ``captured``."""
        if id(tensor) not in self._places:
            self.captured.append(self._add(tensor))
        return self._places[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refusal, mutates = _properties_of(func)
        if refusal:
            raise UntraceableError(f"{func} {refusal}")
        arguments = mapped(Tensor, self._placed, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if func in ALIASES and result.shape == args[0].shape and result.stride() == args[0].stride():
            self._add(result, self.place_of(args[0]))
            return result
        tensors = [result] if isinstance(result, Tensor) else [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        results = [self._places.get(id(x), -1) for x in tensors]
        if mutates and any(0 <= place < self.count or place in self.captured for place in results):
            raise UntraceableError(f"{func} writes into a tensor that the function did not make")
        results = [self._add(x) if place < 0 else place for x, place in zip(tensors, results, strict=True)]
        self.operations.append(Operation(func, arguments, results, mutates))
        return result

    def _placed(self, tensor: Tensor) -> Place:
        return Place(self.place_of(tensor))

    def _add(self, tensor: Tensor, place: int | None = None) -> int:
        self.tensors.append(tensor)
        self._places[id(tensor)] = len(self.tensors) - 1 if place is None else place
        return self._places[id(tensor)]


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the garbage collector.

    A recording makes thousands of objects that stay, and so triggers collections. Each collection goes through all
    objects of the process, for a quarter of a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _properties_of(function: Any) -> tuple[str, bool]:
    """The reason why calls of an operator cannot be recorded (or an empty text), and whether it writes to arguments."""
    refusal = ""
    if torch.Tag.nondeterministic_seeded in function.tags:
        refusal = "draws random numbers"
    if torch.Tag.data_dependent_output in function.tags:
        refusal = "reads the value of a tensor"
    return refusal, function._schema.is_mutable


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, in a fifth of the time of ``module.parameters()``.

    The tensors of a submodule that occurs twice are listed twice.
    """
    tensors = [x for holder in (module._parameters, module._buffers) for x in holder.values() if x is not None]
    for submodule in module._modules.values():
        if submodule is not None:
            tensors += tensors_of(submodule)
    return tensors


def same_bits(result: Tensor, expected: Tensor) -> bool:
    """Whether two tensors have the same shape, type and values; NaN equals NaN."""
    is_similar = result.shape == expected.shape and result.dtype == expected.dtype
    if not is_similar or not result.is_floating_point():
        return is_similar and torch.equal(result, expected)
    return torch.allclose(result, expected, rtol=0, atol=0, equal_nan=True)
