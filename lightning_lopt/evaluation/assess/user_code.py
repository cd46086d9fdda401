"""``module.py:Model``: a class or function of the user's own file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_object(address: str) -> Callable[[], Any]:
    """What ``FILE.py:NAME`` names, callable without arguments; the file is run, as ``import`` would.

    Raises:
        ValueError: if the address has another form, the file is missing or fails, has no such name, or what it names
            needs arguments.
    """
    path, colon, name = address.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise ValueError(f"{address!r} is no address; write FILE.py:NAME, as in module.py:Model.")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {path!r}; give the path of a Python file before the colon.")
    found = getattr(_imported(file), name, None)
    if found is None:
        raise ValueError(f"{path} has no {name!r}; give the name of a class or function in it.")
    if not callable(found):
        raise ValueError(
            f"{name!r} in {path} is a {type(found).__name__}; give a class, or a function that builds one."
        )
    needed = _needed(found)
    if needed:
        raise ValueError(
            f"{name} in {path} needs the arguments {', '.join(needed)}; write a function there that takes none and "
            f"returns {name}(...), and name that."
        )
    return found  # type: ignore[no-any-return]


def _imported(file: Path) -> Any:
    name = f"_assessed_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file; give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for pickling and dataclasses
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # as when the file is run: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{file} cannot be imported ({type(error).__name__}: {error}); run it by itself first."
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _needed(target: Callable[..., Any]) -> list[str]:
    """Parameters without a default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
