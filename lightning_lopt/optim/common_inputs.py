"""The inputs that are the same for the graphs of all stacks: the tensors of a tree, and the tree without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lightning_lopt.rules.base import StepContext
from lightning_lopt.tracing import UntraceableError


@dataclass(frozen=True, eq=False)
class TreeTemplate:
    """A tree without its tensors.

    Attributes:
        structure: structure of the tree.
        leaves: numbers, texts and ``None`` of the tree; ``...`` replaces each tensor.
        is_context: whether the tree is a :class:`StepContext`.
        text: a description that is equal for equal templates.
    """

    structure: TreeSpec
    leaves: list[Any]
    is_context: bool
    text: str

    @classmethod
    def of(cls, tree: Any) -> tuple[list[Tensor], TreeTemplate]:
        """The tensors of a tree, and its template."""
        is_context = isinstance(tree, StepContext)
        leaves, structure = tree_flatten(tensors_of_context(tree) if is_context else tree)
        template_leaves = [... if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        if not all(
            leaf is ... or leaf is None or isinstance(leaf, bool | int | float | str) for leaf in template_leaves
        ):
            raise UntraceableError("the rule's at() returns more than tensors, numbers and texts")
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)], cls(
            structure, template_leaves, is_context, f"{structure} {template_leaves}"
        )

    def tree(self, tensors: Iterable[Tensor]) -> Any:
        """The inverse of :meth:`of`."""
        remaining = iter(tensors)
        tree = tree_unflatten([next(remaining) if leaf is ... else leaf for leaf in self.leaves], self.structure)
        return StepContext(**tree) if self.is_context else tree


class CommonInputs:
    """The result of :meth:`UpdateRule.at`, a tree: its tensors and its template."""

    def __init__(self, tensors: list[Tensor], template: TreeTemplate) -> None:
        self.tensors, self.template = tensors, template

    @cached_property
    def tree(self) -> Any:
        return self.template.tree(self.tensors)


def tensors_of_context(context: StepContext) -> dict[str, Tensor]:
    """The tensors of a context by the names of their fields."""
    return {key: x for key in _TENSOR_FIELDS if (x := getattr(context, key)) is not None}


_TENSOR_FIELDS = ("step", "total_steps", "loss", "scheduled", "epochs")
