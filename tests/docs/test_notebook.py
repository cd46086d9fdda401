"""The notebook: its cells run one after the other, it is short, and no output is kept in it."""

import json
import logging
import re
import sys
import types
from pathlib import Path

import pytest
from docs_code import load

from lightning_lopt import Assessment

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def source(kind):
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind]


def shortened(code):
    """A cell with few steps and little time."""
    return re.sub(r"^STEPS = \d+", "STEPS = 12", code, flags=re.M).replace('BUDGET = "20s"', "BUDGET = 1.0")


def test_cells_run_one_after_the_other(monkeypatch, tmp_path, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.INFO)  # put back afterwards
    pyplot.switch_backend("Agg")
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    namespace = module.__dict__
    for number, code in enumerate(source("code"), 1):
        exec(compile(shortened(code), f"first_steps.ipynb, code cell {number}", "exec"), namespace)
    assert namespace["STEPS"] == 12
    assert list(namespace["runs"]) == ["base", "AdamW, 0.001", "AdamW, 0.003", "AdamW, 0.01"]
    assert all(len(run.losses) == len(run.seconds) == 12 for run in namespace["runs"].values())
    assert [line.split(" loss ")[0].strip() for line in capsys.readouterr().out.splitlines()] == list(namespace["runs"])
    assert [len(axes.lines) for axes in namespace["figure"].axes] == [4, 4]
    assert isinstance(namespace["assessment"], Assessment)
    assert source("code")[-1].splitlines()[-1] == "assessment"  # what the notebook shows
    pyplot.close("all")


def test_it_is_short_and_holds_no_output():
    assert 8 <= len(CELLS) <= 12
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS if "outputs" in cell)
    assert NOTEBOOK.stat().st_size < 20_000


def test_its_links_go_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)\)", "\n".join(source("markdown")))
    assert len(targets) >= 4
    assert all((NOTEBOOK.parent / target).exists() for target in targets)


def test_it_becomes_a_page(monkeypatch):
    files = types.ModuleType("mkdocs.structure.files")
    files.File = object
    for name, module in {"mkdocs": types.ModuleType("mkdocs"), "mkdocs.structure": types.ModuleType("s")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", files)
    hook = load("notebooks")
    page = hook.markdown(NOTEBOOK.read_text(encoding="utf-8"), "first_steps.ipynb")
    assert page.startswith("# First steps\n")
    assert page.index("(first_steps.ipynb)") < page.index("```python\nimport logging\n")
    assert page.count("```python\n") == len(source("code"))
    other, own = (types.SimpleNamespace(file=types.SimpleNamespace(generated_by=by)) for by in (None, "notebooks"))
    assert hook.on_page_markdown("[a](first_steps.ipynb)", other) == "[a](first_steps.md)"
    assert hook.on_page_markdown("[a](first_steps.ipynb)", own) == "[a](first_steps.ipynb)"
