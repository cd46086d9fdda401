"""The pages under ``docs``: their Python code runs, and what they name exists.

A page is run from its first Python block to its last in one namespace. A block that cannot run everywhere has a comment
before it in the page: ``<!-- needs: accelerate -->`` skips it where the package is absent, and
``<!-- not run: REASON -->`` always. Blocks after it run all the same.
"""

import ast
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from docs_code import load

import lightning_lopt
import lightning_lopt.cli
from lightning_lopt.evaluation.report.numbers import REPORTED
from lightning_lopt.evaluation.suites import SUITES
from lightning_lopt.rules import RULES
from lightning_lopt.tasks import mixtures

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILT = sorted(DOCS.rglob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")), *BUILT]
BLOCK = re.compile(r"^(?:<!-- ([\w ]+): (.*?) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PUBLIC_FOLDERS = (
    *("assessment", "callbacks", "evaluation", "evaluation.metrics", "interop", "io", "meta", "optim", "rules"),
    *("tasks", "tasks.transforms"),
)
REGISTRIES = (RULES, REPORTED, SUITES, mixtures.OTHER_FAMILIES, mixtures.MIXTURES)

ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    """Mark, its text, line and code of each fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found[3] == language:
            yield found[1], found[2], text.count("\n", 0, found.start(4)), found[4]


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """A module to run a page in, in an empty folder; registries are as before afterwards."""
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in REGISTRIES]
    module = types.ModuleType("page")
    sys.modules["page"] = module  # where classes of the page are looked for by pickle
    torch.manual_seed(0)
    yield module.__dict__
    del sys.modules["page"]
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@ids
def test_python_blocks_run(page, namespace):
    skipped, runs = [], 0
    for mark, why, line, code in blocks(page, "python"):
        assert mark in (None, "needs", "not run"), f"{page}:{line}: {mark}"
        absent = mark == "needs" and importlib.util.find_spec(why) is None
        if mark == "not run" or absent:
            skipped.append(f"line {line}: {'needs ' if absent else ''}{why}")
            continue
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
        runs += 1
    if skipped and not runs:
        pytest.skip("; ".join(skipped))


@pytest.mark.parametrize("name", ["callback", "estimator", "metric", "task-family"])
def test_an_example_for_the_package_has_types(name):
    """The first block of the page, which can be a file of the package, where mypy asks for them."""
    code = next(blocks(DOCS / "extending" / f"{name}.md", "python"))[-1]
    for function in ast.walk(ast.parse(code)):
        if isinstance(function, ast.FunctionDef):
            arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            arguments += [extra for extra in (function.args.vararg, function.args.kwarg) if extra is not None]
            untyped = [one.arg for one in arguments if one.annotation is None and one.arg != "self"]
            assert (function.name, untyped) == (function.name, [])
            assert function.returns is not None, function.name


@ids
def test_commands_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    commands = {name for name, *_ in re.findall(r"lightning-lopt ([a-z][a-z-]+)( |`|$)", text, re.MULTILINE)}
    known = set(lightning_lopt.cli.COMMANDS)
    assert commands <= known, commands - known
    for path in set(re.findall(r"\b((?:examples|tests|lightning_lopt|docs)/[\w/]+\.(?:py|md|yaml|sh|csv))\b", text)):
        assert (ROOT / path).exists(), path


@ids
def test_links_go_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_the_index_of_examples_is_complete():
    folder = ROOT / "examples"
    text = (folder / "README.md").read_text(encoding="utf-8")
    named = {str(path.relative_to(folder)) for name in re.findall(r"`([\w/*.]+)`", text) for path in folder.glob(name)}
    there = {str(path.relative_to(folder)) for kind in ("py", "sh", "yaml") for path in folder.rglob(f"*.{kind}")}
    assert there <= named, there - named


def test_every_page_is_in_the_menu():
    def leaves(node):
        if isinstance(node, str):
            yield node
        else:
            for value in node.values() if isinstance(node, dict) else node:
                yield from leaves(value)

    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [*BUILT, *(path.with_suffix(".md") for path in DOCS.rglob("*.ipynb"))]  # notebooks become pages
    assert sorted(leaves(menu)) == sorted(str(page.relative_to(DOCS)) for page in pages)


def test_the_reference_has_every_public_name():
    """With the entries that ``docs/api_pages.py`` writes when the pages are built."""
    api_pages = load("api_pages")
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    entries = re.findall(r"^::: ([\w.]+)$", api_pages.with_entries(text, api_pages.listed_names()), re.MULTILINE)
    assert len(set(entries)) == len(entries), "a name has two entries"
    names = {name.rpartition(".")[2] for name in entries}
    for package in ("lightning_lopt", *(f"lightning_lopt.{folder}" for folder in PUBLIC_FOLDERS)):
        assert set(api_pages.public_names(package)) - names == set(), package
