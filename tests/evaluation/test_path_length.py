"""From ``evaluate`` to a row of the page and to its pictures, a reader opens 12 files."""

import inspect
import sys
from pathlib import Path

import torch

import lightning_lopt.evaluation
from lightning_lopt import AdamRule
from lightning_lopt.evaluation import Baselines, Problem, evaluate, write_report
from lightning_lopt.tasks import Quadratic

FOLDER = Path(lightning_lopt.evaluation.__file__).parent
LONGEST_PATH = 12


def files_called(work):
    """Files of the package ``evaluation`` of which ``work`` calls a function."""
    called = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name != "<module>":  # not an import
            called.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return {path.relative_to(FOLDER).as_posix() for path in map(Path, called) if path.is_relative_to(FOLDER)}


def test_the_path_of_a_problem_to_its_row_is_short(tmp_path):
    bowl = Problem("bowl", Quadratic(torch.tensor([1.0, 4.0])), horizon=20)

    def work():
        baselines = Baselines(tmp_path / "baselines.json", seeds=2, shipped=False)
        results = evaluate({"mine": AdamRule(0.1)}, [bowl], ["adamw"], baselines=baselines, folder=tmp_path)
        write_report(results, tmp_path)

    files = files_called(work)
    assert "<td>bowl</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "curves_01.png").exists()
    assert {"evaluator.py", "report/page.py"} <= files
    files |= {Path(inspect.getfile(Problem)).name}  # a dataclass, of which no call is noted
    assert len(files) <= LONGEST_PATH, f"{len(files)} files are on the path of a problem: {', '.join(sorted(files))}"
