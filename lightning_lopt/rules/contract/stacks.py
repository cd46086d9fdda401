"""Parameter tensors of one shape and role, stepped as one: what a rule says of one tensor, mapped over all of them."""

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
"""Most entries of one stack on a CPU: there an operation on more of them costs more than its call."""
DEVICE_LIMIT = 2**24
CPU_FEWEST = 4
"""Fewest tensors that are mapped over on a CPU: ``vmap`` makes an operation there cost what four cost without."""
DEVICE_FEWEST = 2

Result = TypeVar("Result")


class TensorInputs(NamedTuple):
    """What a rule sees of one parameter tensor of shape s in a step.

    Attributes:
        param: its value before the step, s.
        grad: gradient of the loss, s.
        state: what :meth:`UpdateRule.init_tensor` or the last step returned for it.
        role: what the tensor is in the model.
        weight_decay: decoupled weight decay that the user asks for beside the rule's own, a number or 0-dim.
        full: whether what need not be done at every step is done in this one, see :attr:`UpdateRule.period`.
    """

    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    role: Role
    weight_decay: float | Tensor = 0.0
    full: bool = True


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape s and role. With n of them, all that follows has an axis n in front; a single one has none.

    Attributes:
        names: of the n parameters.
        params: (n, *s).
        grads: (n, *s).
        state: by key.
        role: of all of them.
        weight_decay: a number, or (n,).
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
        """``function`` of the inputs and controls of each tensor; its results have an axis n in front, if there is one.

        Args:
            function: of what concerns one tensor.
            controls: (n, ...) each, also where n is 1.
        """
        if len(self.names) == 1:
            inputs = TensorInputs(self.params, self.grads, self.state, self.role, self.weight_decay, self.full)
            return function(inputs, {key: value[0] for key, value in controls.items()})
        decay = self.weight_decay
        mapped = decay if isinstance(decay, Tensor) else None

        def of_each(
            param: Tensor, grad: Tensor, state: Mapping[str, Tensor], mapped: Tensor | None, own: Mapping[str, Tensor]
        ) -> Result:
            weight_decay = decay if mapped is None else mapped
            return function(TensorInputs(param, grad, state, self.role, weight_decay, self.full), own)

        in_dims = (0, 0, 0, None if mapped is None else 0, 0)
        result: Result = vmap(of_each, in_dims=in_dims)(self.params, self.grads, dict(self.state), mapped, controls)
        return result

    def columns(self, result: dict[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`map` returned, with an axis n in front also where n is 1."""
        return {key: value[None] for key, value in result.items()} if len(self.names) == 1 else result

    def parts(self, result: Any) -> list[Any]:
        """What :meth:`map` returned, for each tensor."""
        if len(self.names) == 1:
            return [result]
        leaves, structure = tree_flatten(result)
        return [tree_unflatten(list(rows), structure) for rows in zip(*(leaf.unbind() for leaf in leaves), strict=True)]


def grouped(params: Mapping[str, Tensor], names: Sequence[str], roles: Mapping[str, Role]) -> list[list[str]]:
    """Which tensors are stepped as one: those of one shape, type, device and role, as far as the limits allow.

    Matrices come first, so that they follow one another where work is shared out over the steps.

    Args:
        params: by name; shapes, types and devices are read.
        names: of those that are stepped.
        roles: by name; a name that is missing has the role of its shape.

    >>> few = {name: torch.zeros(2) for name in "abc"}
    >>> grouped(few | {name: torch.zeros(3, 3) for name in "defgh"}, list("abcdefgh"), {})
    [['d', 'e', 'f', 'g', 'h'], ['a'], ['b'], ['c']]
    """
    alike: dict[Any, list[str]] = {}
    for name in names:
        param = params[name]
        role = roles.get(name, role_of_shape(tuple(param.shape)))
        alike.setdefault((role, param.shape, param.dtype, param.device), []).append(name)
    groups: list[list[str]] = []
    for (_, shape, _, device), members in sorted(alike.items(), key=lambda item: len(item[0][1]) < 2):
        cpu = device.type == "cpu"
        most = max(1, (CPU_LIMIT if cpu else DEVICE_LIMIT) // max(shape.numel(), 1))
        pieces = [members[start : start + most] for start in range(0, len(members), most)]
        for piece in pieces:
            groups += [piece] if len(piece) >= (CPU_FEWEST if cpu else DEVICE_FEWEST) else [[name] for name in piece]
    return groups


def joined(values: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape with an axis in front; a single one as it is."""
    return values[0] if len(values) == 1 else torch.stack(list(values))


def joined_decay(names: Sequence[str], weight_decay: Mapping[str, float | Tensor], like: Tensor) -> float | Tensor:
    """The weight decay of a stack: a number where all have the same one, a single 0-dim tensor as it is, else (n,)."""
    values = [weight_decay.get(name, 0.0) for name in names]
    first = values[0]
    if len(values) == 1 or (not any(isinstance(value, Tensor) for value in values) and len(set(values)) == 1):
        return first
    tensors = [value if isinstance(value, Tensor) else like.new_full((), value) for value in values]
    return torch.stack([value.to(like.dtype) for value in tensors])
