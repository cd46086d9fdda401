"""Stacks of parameter tensors of one shape and role: the step of a rule for one tensor, mapped over all of them."""

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
"""Most entries of one stack on a CPU: above it the arithmetic of an operation costs more than its call."""
DEVICE_LIMIT = 2**24
CPU_FEWEST = 4
"""Fewest tensors in a stack on a CPU: under ``vmap`` an operation costs as much as four without it."""
DEVICE_FEWEST = 2

Result = TypeVar("Result")


class TensorInputs(NamedTuple):
    """The inputs of a step for one parameter tensor of shape s.

    Attributes:
        param: value of the parameter before the step, shape s.
        grad: gradient of the loss, shape s.
        state: state from :meth:`UpdateRule.init_tensor` or from the last step.
        role: role of the tensor in the model.
        weight_decay: decoupled weight decay of the user, added to that of the rule; a number or 0-dim.
        full: whether this step includes the work that is not needed at every step, see :attr:`UpdateRule.period`.
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    role: Role
    weight_decay: float | Tensor = 0.0
    full: bool = True


@dataclass(frozen=True)
class Stack:
    """n tensors of one shape s and role; the tensors below have a first axis n, or none where n is 1.

    Attributes:
        names: names of the n parameters.
        params: parameters, shape (n, *s).
        grads: gradients, shape (n, *s).
        state: state by key.
        role: role of all n tensors.
        weight_decay: a number, or shape (n,).
        full: as in :class:`TensorInputs`.
    """

    names: Sequence[str]
    params: Tensor
    grads: Tensor
    state: Mapping[str, Tensor]
    role: Role
    weight_decay: float | Tensor = 0.0
    full: bool = True

    def map(
        self, function: Callable[[TensorInputs, Mapping[str, Tensor]], Result], controls: Mapping[str, Tensor]
    ) -> Result:
        """``function`` of the inputs and controls of each tensor; the results have a first axis n, or none for n = 1.

        Args:
            function: function of the inputs and controls of one tensor.
            controls: controls by name, with a first axis n, or none for n = 1.
        """
        if len(self.names) == 1:
            inputs = TensorInputs(self.params, self.grads, self.state, self.role, self.weight_decay, self.full)
            return function(inputs, controls)
        decay = self.weight_decay
        mapped = decay if isinstance(decay, Tensor) else None

        def of_each(
            param: Tensor,
            grad: Tensor,
            state: Mapping[str, Tensor],
            mapped: Tensor | None,
            tensor_controls: Mapping[str, Tensor],
        ) -> Result:
            weight_decay = decay if mapped is None else mapped
            return function(TensorInputs(param, grad, state, self.role, weight_decay, self.full), tensor_controls)

        in_dims = (0, 0, 0, None if mapped is None else 0, 0)
        result: Result = vmap(of_each, in_dims=in_dims)(self.params, self.grads, dict(self.state), mapped, controls)
        return result

    def parts(self, result: Any) -> list[Any]:
        """The result of :meth:`map` as a list with one entry for each tensor."""
        if len(self.names) == 1:
            return [result]
        leaves, structure = tree_flatten(result)
        return [tree_unflatten(list(rows), structure) for rows in zip(*(leaf.unbind() for leaf in leaves), strict=True)]


def grouped(params: Mapping[str, Tensor], names: Sequence[str], roles: Mapping[str, Role]) -> list[list[str]]:
    """The names of each stack: tensors of one shape, type, device and role, as many as the limits allow.

    Matrices come first, so that their indices are consecutive where :attr:`UpdateRule.period` distributes work.

    Args:
        params: parameters by name; only shapes, types and devices are read.
        names: names of the parameters that are stepped.
        roles: roles by name; a name that is missing has the role of its shape.

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
    for (_, shape, _, device), members in sorted(names_by_kind.items(), key=lambda item: len(item[0][1]) < 2):
        cpu = device.type == "cpu"
        largest_count = max(1, (CPU_LIMIT if cpu else DEVICE_LIMIT) // max(shape.numel(), 1))
        pieces = [members[start : start + largest_count] for start in range(0, len(members), largest_count)]
        for piece in pieces:
            groups += [piece] if len(piece) >= (CPU_FEWEST if cpu else DEVICE_FEWEST) else [[name] for name in piece]
    return groups


def joined(values: Sequence[Tensor]) -> Tensor:
    """n tensors of one shape s as one of shape (n, *s); a single tensor is returned as it is."""
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
    """The weight decay of a stack: a number if all are equal, a single 0-dim tensor as it is, otherwise shape (n,)."""
    values = [weight_decay.get(name, 0.0) for name in names]
    first_value = values[0]
    if len(values) == 1 or (not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1):
        return first_value
    tensors = [value if isinstance(value, Tensor) else like.new_full((), value) for value in values]
    return torch.stack([value.to(like.dtype) for value in tensors])


def scaled(values: Tensor, rates: Sequence[float | Tensor]) -> Tensor:
    """The values of n tensors, each multiplied by its rate.

    Args:
        values: (n, ...), or those of a single tensor, without an axis n.
        rates: n numbers or 0-dim tensors.

    >>> scaled(torch.ones(2, 3), [0.5, 2.0])
    tensor([[0.5000, 0.5000, 0.5000],
            [2.0000, 2.0000, 2.0000]])
    """
    if len(rates) == 1:
        return values * rates[0]
    return torch.stack([value * rate for value, rate in zip(values, rates, strict=True)])
