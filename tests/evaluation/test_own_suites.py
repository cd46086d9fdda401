"""The door of ``lightning_lopt.evaluation``, and suites of one's own, in Python and from the shell."""

import json

import pytest
import torch

import lightning_lopt.evaluation as house
from lightning_lopt import AdamRule
from lightning_lopt.cli import main
from lightning_lopt.evaluation import Baselines, Problem, Results, evaluate, write_report
from lightning_lopt.tasks import Quadratic

MINE = """
import torch
from lightning_lopt.evaluation import Problem
from lightning_lopt.tasks import Quadratic


class Bowl(Quadratic):
    pass


bowls = [Problem("mine", Bowl(torch.tensor([1.0, 0.5])), 12, "quadratic")]
empty = []
number = 3


def suite():
    return bowls


def wide(width):
    return bowls


def fails():
    raise KeyError("no data")


def no_problems():
    return [Bowl(torch.tensor([1.0]))]
"""


@pytest.fixture(autouse=True)
def _user_file(monkeypatch, tmp_path):
    (tmp_path / "my_module.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["suite", "bowls"])
def test_evaluate_a_suite_of_a_file(name, tmp_path, capsys):
    arguments = ["evaluate", "base", "--suite", f"my_module.py:{name}", "--against", "adam_default", "--seeds", "1"]
    assert main([*arguments, "--out", "out"]) == 0
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.suite == f"my_module.py:{name}"
    assert [problem.name for problem in results.problems] == ["mine"]
    assert f"suite my_module.py:{name}, 1 problem, " in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_processes_know_the_classes_of_the_file(tmp_path):
    arguments = ["evaluate", "base", "--suite", "my_module.py:suite", "--against", "adam_default", "--seeds", "1"]
    assert main([*arguments, "--workers", "2", "--out", "two"]) == 0
    assert main([*arguments, "--out", "one"]) == 0
    two, one = (Results.load(tmp_path / name / "results.json").problems[0].measurements for name in ("two", "one"))
    assert torch.allclose(two["base"].final_train, one["base"].final_train)


def test_baselines_of_a_suite_of_a_file(tmp_path, capsys):
    arguments = ["--suite", "my_module.py:suite", "--optimizer", "adam_default", "--seeds", "1", "--out", "all.json"]
    assert main(["baselines", *arguments]) == 0
    assert "mine, adam_default: " in capsys.readouterr().out
    assert [entry["problem"] for entry in json.loads((tmp_path / "all.json").read_text())["entries"]] == ["mine"]


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        ("nowhere.py:suite", "there is no file 'nowhere.py'"),
        ("my_module.py:other", "my_module.py has no 'other'"),
        ("my_module.py:", "is not an address; write FILE.py:NAME"),
        ("my_module.py:number", "my_module.py:number is not a suite; it must be a list of"),
        ("my_module.py:no_problems", "my_module.py:no_problems is not a suite; it must be a list of"),
        ("my_module.py:empty", "is a suite without a problem"),
        ("my_module.py:wide", "wide in my_module.py needs the arguments width"),
        ("my_module.py:fails", "my_module.py:fails() fails (KeyError: 'no data')"),
    ],
)
def test_a_bad_reference_is_one_sentence(suite, says, capsys):
    assert main(["evaluate", "base", "--suite", suite]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("lightning-lopt: ") == 1


def test_what_else_can_be_wrong(capsys):
    assert main(["evaluate", "base", "--suite", "my_module.py:suite", "--data", "digits"]) == 2
    message = "--data applies only to suites of the package; leave it out for my_module.py:suite"
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "base", "--suite", "huge"])
    assert stopped.value.code == 2
    assert "invalid choice: 'huge' (choose from 'tiny', 'small'" in capsys.readouterr().err


def test_a_list_of_problems_in_python(tmp_path):
    problems = (Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), 12),)
    results = evaluate({"mine": AdamRule(0.1)}, problems, ["adam_default"], baselines=Baselines(seeds=1))
    assert write_report(results, tmp_path).name == "report.html"


def test_every_public_name_says_what_it_is():
    assert all(getattr(house, name).__doc__ for name in house.__all__)
