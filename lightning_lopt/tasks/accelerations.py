"""Optional facts about tasks that make their inner steps faster; tasks without them work, too.

Each fact belongs to one piece of code, so a subclass that overrides the code does not inherit the fact.
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

    With an axis of steps in front, such a method gives the same numbers as in calls step by step, since one call draws
    its numbers in order.

    Args:
        holds: for which tasks of the class this is true; for all by default.
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
    """Class decorator that describes the computation of tasks of exactly this class, see :func:`computation_of`.

    Args:
        describe: function of a task: all settings, no tensors, that its loss and gradient depend on besides parameters
            and batch; ``None`` where they are unknown.
    """

    def register(cls: TaskClass) -> TaskClass:
        _COMPUTATIONS[cls] = describe
        return cls

    return register


def computation_of(task: Task) -> Hashable | None:
    """All settings that gradient and loss of a task depend on besides parameters and batch; ``None`` if unknown.

    Tasks with equal settings, whose parameters have the same names and shapes, have batches of the same shapes and
    compute the same function. Their inner runs can be batched, and a CUDA graph that was recorded for one of them can
    be used for the others.
    """
    describe = _COMPUTATIONS.get(type(task))
    description = None if describe is None else describe(task)
    return None if description is None else (type(task), description)
