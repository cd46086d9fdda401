"""Data of several suites: labelled images in two splits, and an excerpt of text."""

from __future__ import annotations

import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.text import resolve_texts

VOCABULARY = 64
MAX_SIDE = 16
"""Suites for the CPU shrink images whose longer side has more than this number of pixels."""


def halves(data: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """The standardised images in two disjoint parts: one for training, and at most 1000 images for validation."""
    return data.standardised().split(0.2, generator(0, "split"), max_valid=1000)


def small_images(data: LabelledImages) -> LabelledImages:
    """The images; large images are shrunk to :data:`MAX_SIDE`."""
    return data.resized(MAX_SIDE) if max(data.shape[1:]) > MAX_SIDE else data


def excerpt(index: int = 0) -> tuple[str, torch.Tensor, torch.Tensor]:
    """The name of a source of Python's standard library, and the tokens of its first nine tenths and last tenth.

    Rare characters become one token.

    Args:
        index: number of the source; suites have the first source.

    Raises:
        ValueError: if this Python installation has no sources.
    """
    text = resolve_texts(None)[index]
    tokens = text.tokens.clamp(max=VOCABULARY - 1)
    cut = 9 * len(tokens) // 10
    return text.name, tokens[:cut], tokens[cut:]
