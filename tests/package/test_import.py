"""What ``import lightning_lopt`` costs, and what it offers."""

import json
import os
import re
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import lightning_lopt

PACKAGE = Path(lightning_lopt.__file__).parent
HEAVY = ["wandb", "matplotlib", "sklearn", "pandas", "jsonargparse", "torchvision", "huggingface_hub"]


def python(code, **variables):
    """What ``code`` prints last, as JSON, in a Python of its own that finds this package."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_heavy_packages_are_neither_needed_nor_imported():
    """Some come with Lightning where they are installed, so what counts is what this package adds to it."""
    code = (
        "import json, sys, time, lightning\n"
        "before = set(sys.modules)\n"
        f"for name in {HEAVY}:\n"
        "    if name not in sys.modules: sys.modules[name] = None  # importing it raises ImportError\n"
        "start = time.process_time()\n"
        "from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter\n"
        "seconds = time.process_time() - start\n"
        "import lightning_lopt\n"
        "for name in lightning_lopt.__all__: getattr(lightning_lopt, name)  # imported when asked for\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before if sys.modules[name]}\n"
        "print(json.dumps([sorted(added), seconds]))\n"
    )
    # compiled by the first run, as an installer does it, even where the environment forbids to write bytecode
    runs = [python(code, PYTHONDONTWRITEBYTECODE="") for _ in range(2)]
    added = runs[0][0]
    # of the processor, and the quickest, so that a busy machine, whose caches others empty, does not matter
    assert min(seconds for _, seconds in runs) < 0.2
    assert "lightning_lopt" in added
    assert set(added) <= {"lightning_lopt", "safetensors", *sys.stdlib_module_names}
    sources = [path.read_text() for path in PACKAGE.rglob("*.py")]
    at_the_top = re.compile(rf"^(?:import|from) ({'|'.join(HEAVY)})\b", re.MULTILINE)
    assert [found for text in sources for found in at_the_top.findall(text)] == []


@pytest.mark.slow
def test_import_takes_at_most_a_fifth_of_a_second_more_than_lightning():
    code = "import time, json; start = time.perf_counter(); import {}; print(json.dumps(time.perf_counter() - start))"
    seconds = {"lightning": [], "lightning_lopt": []}
    for _ in range(3):
        for module, taken in seconds.items():
            taken.append(python(code.format(module)))
    assert statistics.median(seconds["lightning_lopt"]) <= statistics.median(seconds["lightning"]) + 0.2, seconds


def test_what_a_name_means_does_not_depend_on_what_was_imported_before():
    assert callable(lightning_lopt.assess)
    assert python(
        "import json, lightning_lopt, lightning_lopt.assessment, lightning_lopt.evaluation.assess\n"
        "kinds = [type(lightning_lopt.assess).__name__, type(lightning_lopt.rules).__name__]\n"
        "import lightning_lopt.evaluation.evaluate\n"
        "from lightning_lopt.evaluation.evaluate import evaluate as before\n"
        "from lightning_lopt.evaluation import evaluate\n"
        "same = [evaluate is before, callable(lightning_lopt.evaluation.evaluate)]\n"
        "print(json.dumps([*kinds, hasattr(lightning_lopt, 'no_such_name'), *same]))"
    ) == ["function", "module", False, True, True]


@pytest.mark.parametrize("name", lightning_lopt.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    value = getattr(lightning_lopt, name)
    if not name.startswith("__"):
        assert value.__doc__


def test_public_names_are_complete():
    names = lightning_lopt.__all__
    assert len(set(names)) == len(names)
    public = {name for name in vars(lightning_lopt) if not name.startswith("_")}
    modules = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert public - modules <= set(names)


def test_version_is_stated_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|rc|a|b)\d+)?", lightning_lopt.__version__)
    pyproject = PACKAGE.parent / "pyproject.toml"
    if pyproject.exists():
        text = pyproject.read_text()
        assert 'path = "lightning_lopt/__about__.py"' in text
        assert 'dynamic = ["version"]' in text
    try:
        assert version("lightning-lopt") == lightning_lopt.__version__
    except PackageNotFoundError:
        pytest.skip("lightning-lopt is on the path but not installed")


def test_type_checkers_are_told():
    assert (PACKAGE / "py.typed").is_file()
