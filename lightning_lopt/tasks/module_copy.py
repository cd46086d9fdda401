"""Independent copies of a user's module, which may have any attributes besides its parameters."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)
_TENSORS = ("_parameters", "_buffers", "_modules")
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def independent_copy(module: M) -> tuple[M, list[str]]:
    """A deep copy without autograd history and, of a LightningModule, without its Trainer.

    Tensors with autograd history, which ``copy.deepcopy`` refuses, are copied without their history. An attribute
    that cannot be copied (a lock, an open file, an iterator) is shared between the module and its copy.

    Returns:
        the copy, and the names of the attributes that are shared.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> layer.losses, layer.lines = [layer(torch.ones(1))], iter([])
        >>> layer.file = (line for line in [])
        >>> copied, shared = independent_copy(layer)
        >>> shared, copied.losses[0].requires_grad
        (['file'], False)
    """
    trainer = getattr(module, "_trainer", None)
    shared_by_id = {} if trainer is None else {id(trainer): trainer}
    with _WithoutHistory():
        try:
            return _without_trainer(trainer, copy.deepcopy(module, dict(shared_by_id))), []
        except Exception:
            shared = _uncopyable(module, shared_by_id)
        shared_by_id.update({id(value): value for value in shared.values()})
        return _without_trainer(trainer, copy.deepcopy(module, dict(shared_by_id))), list(shared)


def _uncopyable(module: nn.Module, shared_by_id: Mapping[int, Any]) -> dict[str, Any]:
    """Attributes of the module and its children, by dotted name, on which ``copy.deepcopy`` fails."""
    uncopyable = {}
    # an attribute may refer to the module
    memo = {**shared_by_id, **{id(child): child for child in module.modules()}}
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            if name in _TENSORS or name == "_trainer":
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                uncopyable[f"{path}.{name}" if path else name] = value
    return uncopyable


def _without_trainer(trainer: Any, module: M) -> M:
    """The copy, without attributes that refer to the Trainer."""
    if trainer is not None:
        for child in module.modules():
            for name in [name for name, value in vars(child).items() if value is trainer]:
                vars(child)[name] = None
    return module


class _WithoutHistory(TorchFunctionMode):
    """In this context, ``copy.deepcopy`` copies a tensor with autograd history without the history."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **kwargs or {})


class PlainAttributes:
    """The attributes of a module and its children except tensors and submodules; :meth:`put_back` restores them.

    Assigned attributes and the contents of lists, dicts, sets and deques are restored; the contents of other objects
    are not.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.seen = []
        >>> before = PlainAttributes(layer)
        >>> layer.seen.append(1); layer.count = 1
        >>> before.put_back()
        >>> layer.seen, hasattr(layer, "count")
        ([], False)
    """

    def __init__(self, module: nn.Module) -> None:
        self._assigned: list[tuple[dict[str, Any], dict[str, Any], frozenset[str]]] = []
        self._contents: list[tuple[Any, Any]] = []
        for child in module.modules():
            attributes = {name: value for name, value in vars(child).items() if name not in _OF_EVERY_MODULE}
            self._assigned.append((vars(child), attributes, frozenset(vars(child))))
            self._contents += [
                (value, copy.copy(value))
                for value in attributes.values()
                if isinstance(value, list | dict | set | deque)
            ]

    def put_back(self) -> None:
        """Restore all attributes and contents."""
        for current_attributes, attributes, names in self._assigned:
            current_attributes.update(attributes)
            if len(current_attributes) > len(names):
                for name in [name for name in current_attributes if name not in names]:
                    del current_attributes[name]
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            elif len(container) or len(content):
                container.clear()
                container.extend(content) if isinstance(container, deque) else container.update(content)
