"""Tests for Lightning's classes that work for both packages, ``lightning.pytorch`` and ``pytorch_lightning``.

The two packages have different classes with the same names. ``isinstance`` is always false for an object of one package
and a class of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PACKAGES = ("lightning", "pytorch_lightning")


def is_lightning(value: Any, *names: str) -> bool:
    """Whether ``value`` is an instance of a Lightning class with one of ``names``, from either package.

    Args:
        value: any object; the result is false for a class.
        names: names of classes, for instance ``"FSDPStrategy"`` or ``"LightningModule"``; subclasses count, too.

    Example:
        >>> import lightning.pytorch as L
        >>> is_lightning(L.LightningModule(), "LightningModule")
        True
        >>> is_lightning(L.LightningModule, "LightningModule"), is_lightning(3, "LightningModule")
        (False, False)
    """
    return any(cls.__name__ in names for cls in _lightning_classes(type(value)))


def is_lightning_class(value: Any, *names: str) -> bool:
    """Whether ``value`` is itself a Lightning class with one of ``names``, or a subclass, from either package."""
    return isinstance(value, type) and any(cls.__name__ in names for cls in _lightning_classes(value))


def _lightning_classes(kind: type) -> Iterator[type]:
    """The classes that ``kind`` inherits from Lightning."""
    return (cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] in PACKAGES)
