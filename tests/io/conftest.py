"""What holds for all tests of reading and writing rules."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from rule_folders import trained

from lightning_lopt import ResidualRule, save_rule
from lightning_lopt.rules import RULES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder: a small ``ResidualRule`` with both networks."""
    make = lambda: ResidualRule(direction_hidden=2, controller_hidden=2)  # noqa: E731
    return save_rule(trained(make), tmp_path / "rule")


@pytest.fixture(autouse=True)
def _globals_are_left_alone():
    """Nothing here may move a global random state, the default type or the registry."""
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    python_before, dtype, rules = random.getstate(), torch.get_default_dtype(), dict(RULES)
    yield
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    assert random.getstate() == python_before
    assert torch.get_default_dtype() == dtype
    assert rules == RULES
