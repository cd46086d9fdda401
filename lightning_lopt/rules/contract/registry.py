"""The rules that files may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning_lopt.rules.base import UpdateRule

RULES: dict[str, type[UpdateRule]] = {}
"""Rules that files may name: what :func:`~lightning_lopt.load_rule` is allowed to build."""

_RuleClass = TypeVar("_RuleClass", bound="type[UpdateRule]")


def register_rule(name: str) -> Callable[[_RuleClass], _RuleClass]:
    """Class decorator: make a rule loadable from a file under ``name``.

    Raises:
        ValueError: if another class already has that name.
    """

    def register(cls: _RuleClass) -> _RuleClass:
        if name in RULES and RULES[name].__qualname__ != cls.__qualname__:
            raise ValueError(f"rule name {name!r} is taken by {RULES[name].__qualname__}; choose another name.")
        cls.rule_name = name
        RULES[name] = cls
        return cls

    return register
