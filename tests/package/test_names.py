"""A name of a type or of a function means one thing: no two files of the package define it differently."""

import ast
from collections import defaultdict
from pathlib import Path

import lightning_lopt

PACKAGE = Path(lightning_lopt.__file__).parent
ONE_MEANING = {
    "Matrix": "how a kernel becomes a matrix; the choices are those of the rule",
    "Theta": "θ by name; an importer does not change it",
}
ONE_IDEA = {
    "assess": "the command beside the function that it calls",
    "compare": "the command beside the function that it calls",
    "evaluate": "the command beside the function that it calls",
    "main": "the function of a command",
    "problems": "the problems of a suite, a function for each suite",
}


def types_of(path):
    """Classes and aliases of types that a file defines, with their definitions; type variables mean nothing alone."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef):
            yield statement.name, f"class in {path}"
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            value = ast.unparse(statement.value)
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.isupper() and not value.startswith("TypeVar("):
                    yield target.id, value


def functions_of(path):
    """Functions that a file offers to other files."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and not statement.name.startswith("_"):
            yield statement.name


def test_a_function_has_one_meaning():
    files = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in functions_of(path):
            files[name].add(path.relative_to(PACKAGE).as_posix())
    several = {name: sorted(paths) for name, paths in files.items() if len(paths) > 1}
    assert {name: paths for name, paths in several.items() if name not in ONE_IDEA} == {}
    assert set(ONE_IDEA) <= set(several), "an exception is needed no more"


def test_a_type_has_one_meaning():
    meanings = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name, meaning in types_of(path):
            if name[0].isupper():
                meanings[name].add(meaning)
    assert {name for name, several in meanings.items() if len(several) > 1} <= set(ONE_MEANING)
