"""Packages import only from the layers below them, no modules import one another in a circle, and files are short."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import lightning_lopt
from lightning_lopt.rules import RULES

PACKAGE = Path(lightning_lopt.__file__).parent
LAYERS = ("rules", "tasks", "io", "optim", "meta", "evaluation", "assessment", "callbacks")
"""From the lowest to the highest; modules at the top of the package and ``interop`` are not layers."""
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(body):
    """Modules that statements import from this package, also inside functions, but not only for type checkers."""
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("lightning_lopt"):
            for alias in statement.names:
                full = f"{statement.module}.{alias.name}"
                yield full if full in FILES else statement.module
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        else:
            yield from imports(ast.iter_child_nodes(statement))


def imported(name):
    return set(imports(ast.parse(FILES[name].read_text()).body)) - {name}


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_runs_upward(layer):
    higher = LAYERS[LAYERS.index(layer) + 1 :]
    upward = {
        (FILES[name].relative_to(PACKAGE).as_posix(), other.split(".")[1])
        for name in FILES
        if name.split(".")[1:2] == [layer]
        for other in imported(name)
        if other.split(".")[1:2] and other.split(".")[1] in higher
    }
    assert upward == set()


def test_files_at_the_top_of_rules_are_rules():
    """Beside the contract, and what keeps checkpoints working."""
    others = {"__init__", "base", "pickled"}
    at_the_top = {path.stem for path in (PACKAGE / "rules").glob("*.py")} - others
    assert at_the_top == {name.rpartition(".")[2] for name in rule_modules()}


@pytest.mark.parametrize("folder", ["contract", "shared", "residual_parts"])
def test_parts_of_rules_import_no_rule(folder):
    parts = [name for name in FILES if name.startswith(f"lightning_lopt.rules.{folder}.")]
    assert parts
    assert {name for name in parts if imported(name) & rule_modules()} == set()


def rule_modules():
    return {rule.__module__ for rule in RULES.values() if rule.__module__ in FILES}


def test_there_is_no_circle():
    """Imports inside functions count, too; those for type checkers do not."""
    graph = {name: imported(name) & set(FILES) for name in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import one another: {error.args[1]}")


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert 90 <= median(lengths.values()) <= 150
