"""Stacks of parameter tensors of one shape and role, over which the step of a rule for one tensor is mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_lopt.rules.contract.roles import Role, role_of_shape

CPU_LIMIT = 2**15
"""Limit of the entries of one stack on a CPU: above it, the arithmetic of an operation takes longer than its call."""
DEVICE_LIMIT = 2**24
CPU_FEWEST = 4
"""Least number of tensors in a stack on a CPU: under ``vmap``, an operation takes as long as four without it."""
DEVICE_FEWEST = 2

Result = TypeVar("Result")
Store = Callable[[Tensor, Tensor], None]
"""Writes values to memory of the same shape, in the type of the memory."""


class TensorInputs(NamedTuple):
    """The inputs of a step for one parameter tensor of shape s.

    Attributes:
        param: value of the parameter before the step, shape s.
        grad: gradient of the loss, shape s.
        state: state from :meth:`UpdateRule.init_tensor` or from the last step.
        role: role of the tensor in the model.
        weight_decay: decoupled weight decay of the user, added to the weight decay of the rule; a number or 0-dim.
        full: whether this step includes the work that is not needed at every step, see :attr:`UpdateRule.period`.
        store: function ``store(memory, values)`` by which a rule may write new state of a large tensor, or parts of it,
            to the memory of ``state``, instead of returning new tensors; see :attr:`UpdateRule.stores`.

    >>> TensorInputs(param=torch.zeros(2), grad=torch.ones(2), state={}, role="vector").full
    True
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    role: Role
    weight_decay: float | Tensor = 0.0
    full: bool = True
    store: Store | None = None


@dataclass(frozen=True)
class Stack:
    """n tensors of one shape s and role; for n > 1, the tensors below have a first axis n, which is missing for n = 1.

    Attributes:
        names: names of the n parameters.
        params: parameters, shape (n, *s).
        grads: gradients, shape (n, *s).
        state: state by key.
        role: role of all n tensors.
        weight_decay: a number, or shape (n,).
        full, store: as in :class:`TensorInputs`; there is no ``store`` for n > 1.
    """

    names: Sequence[str]
    params: Tensor
    grads: Tensor
    state: Mapping[str, Tensor]
    role: Role
    weight_decay: float | Tensor = 0.0
    full: bool = True
    store: Store | None = None

    def map(
        self, function: Callable[[TensorInputs, Mapping[str, Tensor]], Result], controls: Mapping[str, Tensor]
    ) -> Result:
        """``function`` of the inputs and controls of each tensor; the results have a first axis n, or none for n = 1.

        Args:
            function: function of the inputs and controls of one tensor.
            controls: controls by name, with a first axis n, or none for n = 1.
        """
        if len(self.names) == 1:
            tensors = self.params, self.grads, self.state
            return function(TensorInputs(*tensors, self.role, self.weight_decay, self.full, self.store), controls)
        stack_decay = self.weight_decay
        decays = stack_decay if isinstance(stack_decay, Tensor) else None

        def function_of_tensor(
            param: Tensor,
            grad: Tensor,
            state: Mapping[str, Tensor],
            decay: Tensor | None,
            tensor_controls: Mapping[str, Tensor],
        ) -> Result:
            weight_decay = stack_decay if decay is None else decay
            return function(TensorInputs(param, grad, state, self.role, weight_decay, self.full), tensor_controls)

        mapped_function = vmap(function_of_tensor, in_dims=(0, 0, 0, None if decays is None else 0, 0))
        result: Result = mapped_function(self.params, self.grads, dict(self.state), decays, controls)
        return result

    def parts(self, result: Any) -> list[Any]:
        """The result of :meth:`map` as a list with one entry for each tensor."""
        if len(self.names) == 1:
            return [result]
        leaves, structure = tree_flatten(result)
        return [tree_unflatten(list(rows), structure) for rows in zip(*(leaf.unbind() for leaf in leaves), strict=True)]


def grouped(params: Mapping[str, Tensor], names: Sequence[str], roles: Mapping[str, Role]) -> list[list[str]]:
    """The names in each stack. A stack has tensors of one shape, type, device and role, up to the limits above.

    Matrices come first, so that their indices are consecutive when :attr:`UpdateRule.period` distributes work.

    Args:
        params: parameters by name; only shapes, types and devices are read.
        names: names of the parameters that are stepped.
        roles: roles by name; a missing name has the role of its shape.

    >>> few = {name: torch.zeros(2) for name in "abc"}
    >>> grouped(few | {name: torch.zeros(3, 3) for name in "defgh"}, list("abcdefgh"), {})
    [['d', 'e', 'f', 'g', 'h'], ['a'], ['b'], ['c']]
    """
    names_by_kind: dict[Any, list[str]] = {}
    for name in names:
        param = params[name]
        role = roles.get(name, role_of_shape(tuple(param.shape)))
        names_by_kind.setdefault((role, param.shape, param.dtype, param.device), []).append(name)
    groups: list[list[str]] = []
    for (_, shape, _, device), kind_names in sorted(names_by_kind.items(), key=lambda item: len(item[0][1]) < 2):
        limit, fewest = (CPU_LIMIT, CPU_FEWEST) if device.type == "cpu" else (DEVICE_LIMIT, DEVICE_FEWEST)
        largest_count = max(1, limit // max(shape.numel(), 1))
        pieces = [kind_names[start : start + largest_count] for start in range(0, len(kind_names), largest_count)]
        for piece in pieces:
            groups += [piece] if len(piece) >= fewest else [[name] for name in piece]
    return groups


def joined(values: Sequence[Tensor]) -> Tensor:
    """n tensors of one shape s as one tensor (n, *s); a single tensor is returned unchanged."""
    return values[0] if len(values) == 1 else torch.stack(list(values))


def joined_columns(stacks: Sequence[Stack], results: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Results of :meth:`Stack.map` for each stack as tensors with a first axis for all tensors of all stacks."""
    device, singles = stacks[0].params.device, [len(stack.names) == 1 for stack in stacks]

    def joined_values(values: list[Tensor]) -> Tensor:
        if all(singles):
            return torch.stack(values)
        return torch.cat([value[None] if single else value for value, single in zip(values, singles, strict=True)])

    return {key: joined_values([result[key].to(device) for result in results]) for key in results[0]}


def split_columns(stacks: Sequence[Stack], columns: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inverse of :func:`joined_columns`: the controls of each stack, for :meth:`Stack.map`."""
    counts = [len(stack.names) for stack in stacks]

    def pieces(column: Tensor) -> Sequence[Tensor]:
        if max(counts) == 1:
            return column.unbind()
        split = torch.split(column, counts)
        return [piece[0] if count == 1 else piece for piece, count in zip(split, counts, strict=True)]

    split = {key: pieces(column) for key, column in columns.items()}
    return [
        {key: values[index].to(stack.params.device) for key, values in split.items()}
        for index, stack in enumerate(stacks)
    ]


def joined_decay(names: Sequence[str], weight_decay: Mapping[str, float | Tensor], like: Tensor) -> float | Tensor:
    """The weight decay of a stack: a number if all are equal, a single 0-dim tensor unchanged, otherwise shape (n,)."""
    values = [weight_decay.get(name, 0.0) for name in names]
    first_value = values[0]
    if len(values) == 1 or (not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1):
        return first_value
    tensors = [value if isinstance(value, Tensor) else like.new_full((), value) for value in values]
    return torch.stack([value.to(like.dtype) for value in tensors])


def scaled(values: Tensor, rates: Sequence[float | Tensor]) -> Tensor:
    """The values of n tensors, each multiplied by its rate.

    Args:
        values: (n, ...), or, for a single tensor, values without an axis n.
        rates: n numbers or 0-dim tensors.

    >>> scaled(torch.ones(2, 3), [0.5, 2.0])
    tensor([[0.5000, 0.5000, 0.5000],
            [2.0000, 2.0000, 2.0000]])
    """
    if len(rates) == 1:
        return values * rates[0]
    return torch.stack([value * rate for value, rate in zip(values, rates, strict=True)])
