"""What is known of some tasks that makes their inner steps faster. A task of which nothing is known is right as it is.

Both facts belong to the very code that they are about, so a subclass that overrides it does not inherit them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from lightning_lopt.tasks.base import Task

Draw = TypeVar("Draw", bound=Callable[..., Any])
TaskClass = TypeVar("TaskClass", bound=type[Task])

_IN_ONE_CALL: dict[Callable[..., Any], Callable[[Any], bool]] = {}
_COMPUTATIONS: dict[type[Task], Callable[[Any], Hashable | None]] = {}


def in_one_call(holds: Callable[[Any], bool] = lambda task: True) -> Callable[[Draw], Draw]:
    """Decorator of a method :meth:`Task.draw <lightning_lopt.tasks.Task.draw>` that draws whole numbers in one call.

    With an axis of steps in front, it then draws what it would have drawn step by step: numbers that are drawn in one
    call come one after the other.

    Args:
        holds: of which tasks of the class this is true; of all by default.
    """

    def mark(draw: Draw) -> Draw:
        _IN_ONE_CALL[draw] = holds
        return draw

    return mark


def draws_in_one_call(task: Task) -> bool:
    """Whether the draws of a task for several steps may be made at once."""
    holds = _IN_ONE_CALL.get(type(task).draw)
    return holds is not None and holds(task)


def computes(describe: Callable[[Any], Hashable | None]) -> Callable[[TaskClass], TaskClass]:
    """Class decorator: what the loss and gradient of a task of exactly this class depend on, see
    :func:`computation_of`.

    Args:
        describe: of a task, everything besides parameters and batch, no tensors; ``None`` where it is unknown.
    """

    def register(cls: TaskClass) -> TaskClass:
        _COMPUTATIONS[cls] = describe
        return cls

    return register


def computation_of(task: Task) -> Hashable | None:
    """What the gradient and loss of a task depend on besides parameters and batch; ``None`` if unknown.

    Tasks of which it is equal and whose parameters have the same names and shapes have batches of the same shapes too
    and compute the same of them. Their inner runs can advance as one, and what was recorded for one (a CUDA graph)
    serves the others.
    """
    describe = _COMPUTATIONS.get(type(task))
    description = None if describe is None else describe(task)
    return None if description is None else (type(task), description)
