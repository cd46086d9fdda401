"""Loading of a class, a function or a value from a Python file of the user, by an address ``module.py:name``."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_imported_files: dict[str, Path] = {}  # files by module name


def load_named(address: str) -> Any:
    """The value at the address ``FILE.py:NAME``; the file is run, as ``import`` would run it.

    Raises:
        ValueError: if the address has another form, or the file is missing, fails or has no such name.
    """
    path, colon, name = address.rpartition(":")
    if not colon or not path or not name.isidentifier():
        raise ValueError(f"{address!r} is not an address; write FILE.py:NAME, as in module.py:Model.")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no file {path!r}; give the path of a Python file before the colon.")
    value = getattr(_imported(file), name, None)
    if value is None:
        raise ValueError(f"{path} has no {name!r}; give the name of a class or function in it.")
    return value


def load_object(address: str) -> Callable[[], Any]:
    """The class or function at the address ``FILE.py:NAME``, which can be called without arguments.

    Raises:
        ValueError: in the cases of :func:`load_named`, and if the value cannot be called or needs arguments.
    """
    value, (path, _, name) = load_named(address), address.rpartition(":")
    if not callable(value):
        raise ValueError(
            f"{name!r} in {path} is a {type(value).__name__}; give a class, or a function that builds one."
        )
    check_no_arguments(value, address)
    return value  # type: ignore[no-any-return]


def check_no_arguments(value: Callable[..., Any], address: str) -> None:
    """Check that the class or function at ``address`` can be called without arguments.

    Raises:
        ValueError: if a parameter has no default.
    """
    path, _, name = address.rpartition(":")
    required = _required_parameters(value)
    if required:
        raise ValueError(
            f"{name} in {path} needs the arguments {', '.join(required)}; write a function without arguments there "
            f"that returns {name}(...), and give the name of that function."
        )


def imported_files() -> dict[str, Path]:
    """The files that this process has imported, by module name."""
    return dict(_imported_files)


def import_again(files: Mapping[str, Path]) -> None:
    """Import the :func:`imported_files` of another process, so that objects of their classes can be unpickled.

    Raises:
        ValueError: if a file does not exist any more, has changed, or fails.
    """
    for name, file in files.items():
        if _imported(file).__name__ != name:
            raise ValueError(f"{file} changed while the command ran; run the command again.")


def _imported(file: Path) -> Any:
    """The module of the file, which is run once in a process, and once more after each change of its contents."""
    folder = str(file.resolve().parent)
    try:
        contents = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); put the file back.") from error
    digest = hashlib.sha256(os.fsencode(folder) + b"/" + contents).hexdigest()[:12]
    name = f"_file_of_user_{file.stem}_{digest}"
    if name in _imported_files:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file; give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses need the module here
    sys.path.insert(0, folder)  # the file may import files in its folder, as if Python ran it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ValueError(
            f"{file} cannot be imported ({type(error).__name__}: {error}); run it with python first."
        ) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    _imported_files[name] = file.resolve()
    return module


def _required_parameters(target: Callable[..., Any]) -> list[str]:
    """Names of the parameters without a default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
