"""Small data and helpers for tests of tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_lopt.tasks import LabelledImages


@pytest.fixture(scope="session")
def blobs() -> LabelledImages:
    """120 images of 6×6 pixels in 4 classes: one bright corner for each class, and noise."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 4
    x = rng.normal(size=(120, 1, 6, 6)).astype("float32")
    for label in range(4):
        row, column = 3 * (label // 2), 3 * (label % 2)
        x[y == label, :, row : row + 3, column : column + 3] += 2.0
    return LabelledImages.from_arrays(x, y, "blobs")


@pytest.fixture(autouse=True)
def _global_randomness_is_left_alone():
    """No task, family or loader may read or move the global random state."""
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
