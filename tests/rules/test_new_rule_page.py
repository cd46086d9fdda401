"""The page on adding a rule: its example, as it stands there, passes every test of the contract."""

import inspect
import itertools
import re
import sys
import types
from pathlib import Path

import pytest
import test_contract
import test_contract_training
from rule_catalogue import Entry

import lightning_lopt.rules
from lightning_lopt.rules import RULES

PAGE = Path(lightning_lopt.rules.__file__).parent / "README.md"


def contract():
    """Every test of the contract with every choice of its other arguments."""
    for module in (test_contract, test_contract_training):
        for name, function in vars(module).items():
            marks = {mark.name: mark for mark in getattr(function, "pytestmark", [])}
            if name.startswith("test_") and "entry" in inspect.signature(function).parameters and "slow" not in marks:
                given = [mark.args for mark in function.pytestmark if mark.name == "parametrize"]
                choices = {what: values for what, values in given if what != "entry"}
                for values in itertools.product(*choices.values()):
                    yield pytest.param(function, dict(zip(choices, values, strict=True)), id=f"{name}-{len(choices)}")


@pytest.fixture(scope="module")
def entry():
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("two_momenta")
    sys.modules["two_momenta"] = module  # where torch.compile looks for it
    exec(compile(code, "README.md", "exec"), module.__dict__)
    (line,) = re.findall(r"`(Entry\(.*?\))`", PAGE.read_text(encoding="utf-8"))
    yield eval(line, module.__dict__ | {"Entry": Entry})
    del RULES["two_momenta"], sys.modules["two_momenta"]


@pytest.mark.parametrize(("function", "choice"), list(contract()))
def test_the_example_passes_the_contract(entry, function, choice, request):
    more = {
        name: request.getfixturevalue(name)
        for name in inspect.signature(function).parameters
        if name not in ("entry", *choice)
    }
    function(entry=entry, **choice, **more)


def test_the_page_names_files_that_exist():
    text = PAGE.read_text(encoding="utf-8")
    tests = Path(__file__).parent
    for name in set(re.findall(r"`((?:\w+/)*\w+\.py)`", text)):
        folders = PAGE.parent, PAGE.parent.parent, PAGE.parents[2], tests
        assert any((folder / name).exists() for folder in folders), name
