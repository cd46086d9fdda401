"""Optional properties of tasks that make their inner steps faster; tasks without these properties work, too.

Each property belongs to one method or class, so a subclass that overrides the method does not inherit the property.
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
    """Decorator for a method :meth:`Task.draw <lightning_lopt.tasks.Task.draw>` that draws integers in one call.

    With a leading axis of steps, such a method draws the same numbers as with one call for each step, since a call
    draws its numbers in order.

    Args:
        holds: function of a task that says whether the property holds for the task; by default it holds for all tasks.
    """

    def mark(draw: Draw) -> Draw:
        _IN_ONE_CALL[draw] = holds
        return draw

    return mark


def draws_in_one_call(task: Task) -> bool:
    """Whether one call may draw the numbers of a task for several steps."""
    holds = _IN_ONE_CALL.get(type(task).draw)
    return holds is not None and holds(task)


def computes(describe: Callable[[Any], Hashable | None]) -> Callable[[TaskClass], TaskClass]:
    """Class decorator that describes the computation of tasks of exactly this class, see :func:`computation_of`.

    Args:
        describe: function of a task that returns all settings (no tensors) on which its loss and gradient depend
            besides parameters and batch, or ``None`` if these settings are unknown.
    """

    def register(cls: TaskClass) -> TaskClass:
        _COMPUTATIONS[cls] = describe
        return cls

    return register


def computation_of(task: Task) -> Hashable | None:
    """All settings on which gradient and loss of a task depend besides parameters and batch; ``None`` if unknown.

    Tasks with equal settings, whose parameters have the same names and shapes, have batches of the same shapes and
    compute the same function. Their inner runs can be batched, and all of these tasks can use a CUDA graph that was
    recorded for one of them.
    """
    describe = _COMPUTATIONS.get(type(task))
    description = None if describe is None else describe(task)
    return None if description is None else (type(task), description)
