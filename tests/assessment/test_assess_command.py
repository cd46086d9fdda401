"""``lightning-lopt assess`` from the address of a class to the exit status."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lightning_lopt.cli import main

SOURCE = Path(__file__).with_name("assessed.py")


@pytest.fixture
def user_file(tmp_path):
    shutil.copy(SOURCE, tmp_path / "mine.py")
    (tmp_path / "neighbour.py").write_text("from mine import Model\n\nmaker = 3\n\n\ndef build(width):\n    pass\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    yield tmp_path
    sys.modules.pop("mine", None)


def test_end_to_end(user_file, capsys, tmp_path):
    file, out = user_file / "mine.py", tmp_path / "out.json"
    arguments = [f"{file}:Model", "--datamodule", f"{file}:Data", "--total-steps", "40", "--budget", "60s"]
    status = main(["assess", *arguments, "--json", str(out)])
    printed = capsys.readouterr()
    written = json.loads(out.read_text())
    assert written["verdict"] in ("use it", "use it with care", "don't")
    assert status == (3 if written["verdict"] == "don't" else 0)
    assert printed.out.lower().startswith(f"{written['verdict']}. ")
    assert "\nModel: 7 parameters, batches of 16, 40 steps planned, rule base" in printed.out
    assert printed.err.startswith("lightning-lopt assess: loading PyTorch and Lightning\nassess")
    assert "measuring the cost of a training step" in printed.err
    assert "pilots of 40 steps" in printed.err
    last = written["numbers"]["pilots"][-1]
    assert last["horizon"] == 40
    assert len(last["rule"]["valid"]) == 3
    assert written["numbers"]["seconds"]["allowance"] == "60s"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere.py:Model", "there is no file 'nowhere.py'"),
        ("mine.py", "'mine.py' is not an address; write FILE.py:NAME"),
        ("mine.py:Other", "has no 'Other'"),
        ("neighbour.py:maker", "'maker' in neighbour.py is a int"),
        ("neighbour.py:build", "needs the arguments width; write a function"),
        ("broken.py:Model", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("mine.py:Data", "model gave a Data; give a LightningModule"),
        ("neighbour.py:Model", "Model has no train_dataloader"),
    ],
)
def test_errors_are_sentences(user_file, capsys, monkeypatch, address, message):
    monkeypatch.chdir(user_file)
    assert main(["assess", address, "--total-steps", "10"]) == 2
    assert message in capsys.readouterr().err
