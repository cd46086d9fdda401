"""Weights in the package: one folder per rule, read by :func:`~lightning_lopt.io.load_rule`."""

from pathlib import Path

ROOT = Path(__file__).parent
"""The folder whose subfolders are the embedded rules."""
