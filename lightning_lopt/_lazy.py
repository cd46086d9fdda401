"""Public names that are imported when they are first asked for, so that what is not used costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyPackage(ModuleType):
    """A package in which a public name means the same whether or not a submodule of that name was imported.

    Python's import system assigns a submodule to its package after it was imported. That would replace the function
    ``evaluate`` of a package by its submodule ``evaluate``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("__all__", ())):
            super().__setattr__(name, value)


def lazily(package: str, modules: Sequence[str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562): names in the ``__all__`` of ``package``, looked for in its ``modules``.

    Args:
        package: its full name.
        modules: names below it, in the order in which they are imported until one has the name; each of them is itself
            an attribute of the package.
    """
    sys.modules[package].__class__ = _LazyPackage

    def __getattr__(name: str) -> Any:
        own = sys.modules[package].__dict__
        if name in own["__all__"]:
            for module in modules:
                found = getattr(import_module(f"{package}.{module}"), name, None)
                if found is not None:
                    own[name] = found
                    return found
        elif name in modules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
