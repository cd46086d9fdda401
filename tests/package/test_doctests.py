"""Examples in docstrings print what they say, and every public class and function has one."""

import doctest
import importlib
import inspect
import pkgutil

import lightning.pytorch as L
import pytest
import torch
from torch import nn

import lightning_lopt

MODULES = [info.name for info in pkgutil.walk_packages(lightning_lopt.__path__, "lightning_lopt.")]
PACKAGES = ["lightning_lopt", *(name for name in MODULES if hasattr(importlib.import_module(name), "__all__"))]
PUBLIC = {
    name: getattr(importlib.import_module(package), name)
    for package in PACKAGES
    for name in importlib.import_module(package).__all__
}
# The rest are constants (SUITES, ROLES, ...) and names of types (Batch, Role, Split), which have no docstring.
DOCUMENTED = sorted(name for name, value in PUBLIC.items() if inspect.isclass(value) or inspect.isfunction(value))
HOOKED = (L.Callback, L.LightningModule, L.LightningDataModule)
HOOKS = [
    pytest.param(vars(value)[name], id=f"{value.__name__}.{name}")
    for value in dict.fromkeys(value for value in PUBLIC.values() if inspect.isclass(value))
    for base in HOOKED
    if issubclass(value, base)
    for name in sorted(vars(value).keys() & {name for name in dir(base) if not name.startswith("_")})
    if inspect.isfunction(vars(value)[name])
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_has_an_example_that_runs(name):
    examples = doctest.DocTestParser().get_examples(PUBLIC[name].__doc__ or "")
    where = f"{PUBLIC[name].__module__}.{name}"
    assert examples, f"{where} is public, but its docstring has no example; add lines that begin with >>> to it."
    skipped = [example.source for example in examples if example.options.get(doctest.SKIP)]
    assert not skipped, f"the example of {where} does not run: {skipped}."


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_says_when_it_is_called(hook):
    assert (hook.__doc__ or "").startswith("Called "), "say when Lightning calls the hook, and what happens there"
