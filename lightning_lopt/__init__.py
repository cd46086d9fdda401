"""Learned optimizers for PyTorch Lightning."""

from lightning_lopt.__about__ import __version__

__all__ = ["__version__"]
