"""The baselines inside the package: complete, small, and made again they agree; and the command that made them."""

from collections import Counter
from pathlib import Path

import pytest

import lightning_lopt
from lightning_lopt.cli import main
from lightning_lopt.evaluation.baselines import BASELINES, SHIPPED, Baselines, read_entries
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.evaluation.torch_optimizers import PackagedOptimizer

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")
FILE = Path(lightning_lopt.__file__).parent / "evaluation" / SHIPPED
SUITES = ("tiny", "small", "long", "shift", "held_out", "images")
ONLY = {"soap": ("tiny",)} | dict.fromkeys(
    ("adamw_1e-3", "soap_3e-3", "prodigy", "schedule_free_2.5e-3"), ("tiny", "small")
)
"""Suites for which the results of a baseline come with the package; of other baselines they do for all suites."""


@pytest.fixture(autouse=True)
def _no_packages(request, monkeypatch):
    """Results that come with the package need no other package, nor are they those of another version."""
    if "made_again" not in request.node.name:
        monkeypatch.setattr(PackagedOptimizer, "installed_version", None)


def same_text(problem):
    """Whether this Python's sources are those that the cache was made on; they differ between versions."""
    return problem.data != "argparse" or Baselines().find(problem, "adamw") is not None


@pytest.mark.parametrize("suite", SUITES)
def test_every_problem_has_every_baseline(suite):
    known = Baselines()
    for problem in filter(same_text, make_suite(suite)):
        for name in BASELINES:
            if suite not in ONLY.get(name, SUITES):
                continue
            entry = known.find(problem, name)
            assert entry is not None, (problem.name, name)
            assert entry.problem == problem.name
            assert entry.measurement.optimizer == name
            assert entry.measurement.final_train.isfinite().all()
            assert len(entry.sweep) == len(BASELINES[name].learning_rates)


def test_the_file_is_small_and_holds_nothing_else():
    assert FILE.stat().st_size < 1_500_000
    entries = read_entries(FILE)
    wanted = {problem.name for suite in SUITES for problem in make_suite(suite)}
    assert {entry.problem for entry in entries} == wanted
    assert set(Counter((entry.problem, entry.measurement.optimizer) for entry in entries).values()) == {1}


def test_the_chosen_learning_rate_is_rarely_at_the_end_of_its_sweep():
    """Else a wider sweep would have found a better one."""
    tuned = [run for run in (entry.measurement for entry in read_entries(FILE)) if run.learning_rate is not None]
    ends = [
        run
        for run in tuned
        if run.learning_rate in (rates := BASELINES[run.optimizer].learning_rates)[:: len(rates) - 1]
    ]
    assert len(ends) <= 0.05 * len(tuned), [(run.optimizer, run.learning_rate) for run in ends]


def assert_agrees(problem, name):
    """The median of a new one lies among the seeds of the shipped one, give or take the rounding of another machine."""
    known = Baselines().find(problem, name).measurement
    again = Baselines(shipped=False)(problem, name)
    scale = problem.task.loss_scale
    for split in ("final_train", "final_valid"):
        old, new = getattr(known, split), float(getattr(again, split).median())
        slack = 0.1 * abs(new) + 0.01 * scale
        assert float(old.min()) - slack <= new <= float(old.max()) + slack, (problem.name, name, split)


def test_a_baseline_made_again_agrees():
    assert_agrees(make_suite("tiny")[0], "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_all_of_small_made_again_agree(name):
    packaged = BASELINES[name].packaged
    if packaged is not None and packaged.installed_version != packaged.version:
        pytest.skip(f"needs lightning-lopt[peers]: {packaged.package} {packaged.version} is not installed")
    for problem in filter(same_text, make_suite("small")):
        assert_agrees(problem, name)


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys):
    """It reports each entry, leaves alone what is there, and says where in its sweep the choice lies."""
    path = tmp_path / "baselines.json"
    common = ["baselines", "--suite", "tiny", "--seeds", "1", "--out", str(path)]
    assert main([*common, "--optimizer", "adam_default"]) == 0
    first = read_entries(path)
    assert len(first) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("[1/3] ")
    assert "digits-mlp-tiny, adam_default: " in lines[0]
    assert main([*common, "--optimizer", "adam_default"]) == 0
    assert all(line.endswith("(stored before)") for line in capsys.readouterr().out.splitlines())
    assert [entry.key for entry in read_entries(path)] == [entry.key for entry in first]


def test_unknown_suites_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["baselines", "--suite", "huge", "--out", str(tmp_path / "file.json")])
    assert "invalid choice: 'huge'" in capsys.readouterr().err
