"""Functions compiled by ``torch.compile``; a function that cannot be compiled is called uncompiled."""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Callable, Hashable, Mapping
from itertools import count
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_log = logging.getLogger(__name__)

Result = TypeVar("Result")
_copies = count()


class CompiledFunction(Generic[Result]):
    """A function compiled as one graph for each set of shapes; the numbers are the same up to rounding.

    Compiling can fail: an operation cannot be traced, there is no C++ compiler, or there are more sets of shapes than
    ``torch._dynamo.config.recompile_limit``. From then on, the uncompiled function is called for that set of shapes,
    and one warning gives the reason. If compiling succeeds, its time is logged once, at level ``INFO``.

    The function may write into its arguments, because compiling fails before any value is computed. If the function
    itself has an error, the uncompiled call raises it.

    On CUDA, kernels that do not depend on each other are combined.

    Args:
        function: the function to compile; a graph break counts as a failure.
        backend: as in ``torch.compile``.

    Attributes:
        uncompiled: the reason why a set of shapes is not compiled, by signature.

    >>> double = CompiledFunction(lambda value: 2 * value, backend="eager")
    >>> values = torch.ones(3)
    >>> double(values, signature=signature_of({"values": values}), label="doubling")
    tensor([2., 2., 2.])
    >>> double.uncompiled
    {}
    """

    def __init__(self, function: Callable[..., Result], *, backend: str | Callable[..., Any] = "inductor") -> None:
        combines_kernels = backend == "inductor" and torch.cuda.is_available()
        options: dict[str, Any] | None = {"combo_kernels": True} if combines_kernels else None
        self.function = function
        self.compiled: Callable[..., Result] = torch.compile(
            function, fullgraph=True, dynamic=False, backend=backend, options=options
        )
        self.uncompiled: dict[Hashable, str] = {}
        self._signatures: set[Hashable] = set()

    def __call__(self, *arguments: Any, signature: Hashable, label: str) -> Result:
        """``function(*arguments)``.

        Args:
            signature: the properties of the arguments that a compiled graph depends on, see :func:`signature_of`.
            label: beginning of the log line, for instance ``"inner steps of image_mlp"``.
        """
        if signature in self.uncompiled:
            return self.function(*arguments)
        began = time.perf_counter()
        try:
            result = self.compiled(*arguments)
        except Exception as error:  # an error of the function itself is raised again by the call below
            self.uncompiled[signature] = f"{type(error).__name__}: {error}"
            rank_zero_warn(f"{label}: not compiled: {self.uncompiled[signature]}")
            return self.function(*arguments)
        if signature not in self._signatures:
            self._signatures.add(signature)
            _log.info("%s: compiled in %.1f s", label, time.perf_counter() - began)
        return result


def signature_of(*groups: Mapping[str, Tensor]) -> tuple[Hashable, ...]:
    """A key of all properties that a compiled graph depends on: names, shapes, types and devices, and gradient mode."""
    tensors = [
        tuple((name, value.shape, value.dtype, value.device) for name, value in group.items()) for group in groups
    ]
    return torch.is_grad_enabled(), *tensors


def own_copy(function: Callable[..., Result]) -> Callable[..., Result]:
    """A copy of a Python function; ``torch.compile`` caches, counts and limits the graphs of the copy separately.

    >>> own_copy(signature_of)({}) == signature_of({})
    True
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    return types.FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
