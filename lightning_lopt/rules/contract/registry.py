"""The registry of rules: the names that files may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning_lopt.rules.base import UpdateRule

RULES: dict[str, type[UpdateRule]] = {}
"""Rules that files may name; :func:`~lightning_lopt.load_rule` builds no other rule."""

_RuleClass = TypeVar("_RuleClass", bound="type[UpdateRule]")


def register_rule(name: str) -> Callable[[_RuleClass], _RuleClass]:
    """Class decorator: make a rule loadable from a file under ``name``.

    Raises:
        ValueError: if another class already has that name.

    Example:
        >>> from lightning_lopt import AdamRule
        >>> from lightning_lopt.rules import RULES
        >>> @register_rule("my_adam")
        ... class MyAdam(AdamRule):
        ...     pass
        >>> RULES["my_adam"] is MyAdam, MyAdam.rule_name
        (True, 'my_adam')
        >>> del RULES["my_adam"]  # removes the example from the registry
    """

    def register(cls: _RuleClass) -> _RuleClass:
        if name in RULES and RULES[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"rule name {name!r} is taken by {RULES[name].__qualname__}; choose another name.")
        cls.rule_name = name
        RULES[name] = cls
        return cls

    return register
