"""Recognises Lightning's classes in both packages, ``lightning.pytorch`` and ``pytorch_lightning``.

The two packages hold different classes of the same names, so ``isinstance`` across them is always false.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PACKAGES = ("lightning", "pytorch_lightning")
BASES = ("LightningModule", "LightningDataModule", "ModelHooks", "DataHooks", "CheckpointHooks")


def is_lightning(value: Any, *names: str) -> bool:
    """Whether ``value`` is an instance of a Lightning class with one of ``names``, from either package.

    Args:
        value: any object; a class is no instance.
        names: of classes, as ``"FSDPStrategy"`` or ``"LightningModule"``; subclasses count.

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


def overrides(value: Any, name: str) -> bool:
    """Whether a class of somebody's own, or the instance itself, defines the attribute ``name`` of a LightningModule or
    a LightningDataModule.

    Example:
        >>> import lightning.pytorch as L
        >>> overrides(L.LightningModule(), "training_step")
        False
    """
    if name in vars(value):
        return True
    defining = next((cls for cls in type(value).__mro__ if name in vars(cls)), None)
    if defining is None:
        return False
    return not (defining.__name__ in BASES and defining.__module__.partition(".")[0] in PACKAGES)


def lightning_package(value: Any) -> str:
    """``"lightning.pytorch"`` or ``"pytorch_lightning"``: the package whose classes ``value`` inherits from."""
    roots = (cls.__module__.partition(".")[0] for cls in _lightning_classes(type(value)))
    return "pytorch_lightning" if next(roots, "") == "pytorch_lightning" else "lightning.pytorch"


def _lightning_classes(kind: type) -> Iterator[type]:
    """The classes that ``kind`` inherits from Lightning."""
    return (cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] in PACKAGES)
