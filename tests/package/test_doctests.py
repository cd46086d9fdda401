"""Examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import lightning_lopt

MODULES = [info.name for info in pkgutil.walk_packages(lightning_lopt.__path__, "lightning_lopt.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 6
