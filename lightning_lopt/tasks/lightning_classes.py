"""Attributes that a user's class overrides in a LightningModule or a LightningDataModule, of either package."""

from __future__ import annotations

from typing import Any

from lightning_lopt._lightning import PACKAGES

_BASES = ("LightningModule", "LightningDataModule", "ModelHooks", "DataHooks", "CheckpointHooks")


def overrides(value: Any, name: str) -> bool:
    """Whether the user's class, or the instance itself, overrides the attribute ``name`` of a LightningModule or of a
    LightningDataModule.

    Example:
        >>> import lightning.pytorch as L
        >>> overrides(L.LightningModule(), "training_step")
        False
    """
    if name in vars(value):
        return True
    defining_class = next((cls for cls in type(value).__mro__ if name in vars(cls)), None)
    if defining_class is None:
        return False
    return not (defining_class.__name__ in _BASES and defining_class.__module__.partition(".")[0] in PACKAGES)


def lightning_package(value: Any) -> str:
    """``"lightning.pytorch"`` or ``"pytorch_lightning"``: the package whose classes ``value`` inherits from."""
    roots = [cls.__module__.partition(".")[0] for cls in type(value).__mro__]
    return "pytorch_lightning" if "pytorch_lightning" in roots else "lightning.pytorch"
