"""The page on adding a task family: its example, as it stands there, passes every test of the contract."""

import inspect
import itertools
import re
import sys
import types
from pathlib import Path

import pytest
import test_task_families
from family_catalogue import Entry

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "task-family.md"


def contract():
    """Every test of the contract with every choice of its other arguments."""
    for name, function in vars(test_task_families).items():
        if name.startswith("test_") and "family" in inspect.signature(function).parameters:
            given = [mark.args for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            for values in itertools.product(*(choices for _, choices in given)):
                yield pytest.param(function, dict(zip((what for what, _ in given), values, strict=True)), id=name)


@pytest.fixture(scope="module")
def entry():
    text = PAGE.read_text(encoding="utf-8")
    module = types.ModuleType("waves")
    sys.modules["waves"] = module  # where pickle looks for its classes
    exec(compile(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0], str(PAGE), "exec"), module.__dict__)
    (line,) = re.findall(r"`(Entry\(.*?\))`", text)
    yield eval(line, module.__dict__ | {"Entry": Entry})
    del sys.modules["waves"]


@pytest.mark.parametrize(("function", "choice"), list(contract()))
def test_the_example_passes_the_contract(entry, function, choice, blobs):
    everything = {"entry": entry, "family": entry.build(blobs), **choice}
    function(**{name: everything[name] for name in inspect.signature(function).parameters})
