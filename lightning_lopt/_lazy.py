"""Lazy import of public names at their first use, so that unused parts cost no time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyPackage(ModuleType):
    """A package whose public names are not replaced by submodules of the same name.

    Python's import system assigns an imported submodule to an attribute of its package. For a package with a function
    ``evaluate`` and a submodule ``evaluate``, this assignment would replace the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("__all__", ())):
            super().__setattr__(name, value)


def lazily(package: str, modules: Sequence[str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562): it searches the names of ``__all__`` in the submodules ``modules``.

    Args:
        package: full name of the package.
        modules: names of submodules. They are imported in this order until one of them has the name. Each submodule
            becomes an attribute of the package, too.
    """
    sys.modules[package].__class__ = _LazyPackage

    def __getattr__(name: str) -> Any:
        namespace = sys.modules[package].__dict__
        if name in namespace["__all__"]:
            for module in modules:
                value = getattr(import_module(f"{package}.{module}"), name, None)
                if value is not None:
                    namespace[name] = value
                    return value
        elif name in modules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
