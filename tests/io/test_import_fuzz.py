"""Damaged files of others, five of six of them of flax: nothing hangs, grows or runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("import_fuzz.py")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux does")


def python(*arguments, timeout=300):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("count", [1_200, pytest.param(12_000, marks=pytest.mark.slow)])
def test_random_damage(tmp_path, count):
    done = python(SCRIPT, tmp_path, count)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    found = json.loads(done.stdout)
    assert found["refused"] + found["imported"] == count
    assert found["refused"] > count / 2
    assert found["imported"] > count / 50  # damage to the numbers alone
    assert found["longest"] < 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("limit(); torch.zeros(16 * 2**20 + 2**18)", "can't allocate memory"),
        ("limit(); bytes(70 * 2**20)", "MemoryError"),
        ("limit(); torch.zeros(2**20)", ""),
        ("sys.addaudithook(guard); eval('1')", "compile"),
        ("sys.addaudithook(guard); pickle.loads(pickle.dumps(sys.exit))", "pickle.find_class"),
    ],
)
def test_the_process_would_notice(code, error):
    start = f"import pickle, sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import torch"
    done = python("-c", f"{start}\nfrom import_fuzz import guard, limit\n{code}")
    assert (done.returncode == 0) is (error == "")
    assert error in done.stderr
