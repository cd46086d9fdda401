"""evaluate: measurements that are kept, processes, the commands, and what loggers get."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from lightning_lopt import AdamRule, SGDRule, load_rule
from lightning_lopt.cli import main
from lightning_lopt.evaluation import compare, evaluate_command
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.evaluator import Work, evaluate
from lightning_lopt.evaluation.measurement import Problem, run_rules
from lightning_lopt.evaluation.report import write_report
from lightning_lopt.evaluation.results import Results
from lightning_lopt.evaluation.step_cost import step_costs
from lightning_lopt.rules import MuonRule
from lightning_lopt.tasks import ImageMLPTask, Quadratic, load_digits_data


def bowls():
    return [
        Problem("round", Quadratic(torch.tensor([1.0, 1.0])), 12, "quadratic"),
        Problem("long", Quadratic(torch.tensor([1.0, 0.5]), noise=0.1), 30, "quadratic"),
    ]


RULES = {"slow": SGDRule(0.01), "fast": SGDRule(0.1)}


def measured(folder=None, *, rules=None, workers=1, problems=None, **options):
    baselines = Baselines(seeds=2, shipped=False)
    return evaluate(
        rules or RULES,
        problems or bowls(),
        ("adamw", "sgd"),
        baselines=baselines,
        folder=folder,
        workers=workers,
        **options,
    )


def losses(results):
    return [[run.to_json() for run in problem.measurements.values()] for problem in results.problems]


def test_measurements_are_those_of_the_runs_themselves():
    results = measured()
    for problem, result in zip(bowls(), results.problems, strict=True):
        assert list(result.measurements) == ["slow", "fast", "adamw", "sgd"]
        for name, rule in RULES.items():
            (alone,) = run_rules([rule], problem, seeds=2)
            assert torch.equal(result.measurements[name].train, alone.train)
            assert torch.equal(result.measurements[name].valid, alone.valid)
            assert result.measurements[name].optimizer == name
        sgd = Baselines(seeds=2, shipped=False)(problem, "sgd")
        assert torch.equal(result.measurements["sgd"].final_train, sgd.final_train)
        assert set(result.step_seconds) == {"slow", "fast", "adamw", "sgd"}
        assert result.parameters == 2
    assert results.environment["torch"] == torch.__version__


def test_progress_says_what_begins():
    begun = []
    measured(rules={"slow": RULES["slow"]}, progress=lambda *now: begun.append(now))
    assert begun[:3] == [(0, 8, "slow on round"), (1, 8, "slow on round"), (1, 8, "adamw on round")]
    assert begun[-2:] == [(7, 8, "cost of a step on long"), (8, 8, "cost of a step on long")]


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    calls = []
    original = Work.measure
    monkeypatch.setattr(Work, "measure", lambda work, *job: calls.append(job) or original(work, *job))
    first = measured(tmp_path)
    assert len(calls) == 8
    seen = []
    again = measured(tmp_path, progress=lambda *now: seen.append(now))
    assert len(calls) == 8
    assert losses(again) == losses(first)
    assert [one.step_seconds for one in again.problems] == [one.step_seconds for one in first.problems]
    assert seen == [(8, 10, "measured before"), (9, 10, "cost of a step on round"), (10, 10, "cost of a step on long")]
    measured(tmp_path, rules={"renamed": RULES["slow"]})
    assert len(calls) == 8
    measured(tmp_path, rules={"slow": SGDRule(0.02)})  # another θ
    assert calls[8:] == [(0, "slow"), (1, "slow")]
    longer = [Problem("round", bowls()[0].task, 13)]
    measured(tmp_path, problems=longer)
    assert len(calls) == 14
    kept = sorted(tmp_path.glob("*.json"))
    for path in kept:
        path.write_bytes(path.read_bytes()[:40])  # damaged: measured anew
    assert losses(measured(tmp_path)) == losses(first)
    assert len(calls) == 22


@pytest.mark.slow
def test_processes_give_the_same_as_one(tmp_path):
    alone = measured()
    assert losses(measured(tmp_path, workers=2)) == losses(alone)
    assert len(list(tmp_path.glob("*.json"))) == 10


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_evaluate import measured
if __name__ == "__main__":
    measured(sys.argv[2])
"""


def test_after_kill_9_it_goes_on_where_it_was(tmp_path, monkeypatch):
    script, folder = tmp_path / "script.py", tmp_path / "kept"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(folder)]
    process = subprocess.Popen(command, start_new_session=True)
    for _ in range(24_000):
        if len(list(folder.glob("*.json"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(kept) >= 2
    calls = []
    original = Work.measure
    monkeypatch.setattr(Work, "measure", lambda work, *job: calls.append(job) or original(work, *job))
    results = measured(folder)
    assert len(calls) == max(0, 8 - len(kept))
    assert len(list(folder.glob("*.json"))) == 10  # 8 measurements, and what steps cost on both problems
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert losses(results) == losses(measured())


def test_what_cannot_be_evaluated_is_refused():
    for names, says in (
        ({"problems": [bowls()[0]] * 2}, "two problems are called 'round'"),
        ({"rules": {"adamw": AdamRule(1e-3)}}, "two optimizers are called 'adamw'"),
        ({"workers": 0}, "workers must be at least 1"),
    ):
        with pytest.raises(ValueError, match=says):
            measured(**names)
    with pytest.raises(ValueError, match="give at least one of each"):
        evaluate(RULES, bowls(), ())
    with pytest.raises(ValueError, match="there is no baseline 'lion'"):
        evaluate(RULES, bowls(), ("lion",))


def test_a_suite_and_a_baseline_may_be_given_by_name(monkeypatch, tmp_path):
    """As the shell takes them: the suite of this name, or that of a file of one's own."""
    monkeypatch.setitem(evaluate_command.SUITES, "tiny", lambda sources: bowls())
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom lightning_lopt.evaluation import Problem\nfrom lightning_lopt.tasks import Quadratic\n"
        "def suite():\n    return [Problem('mine', Quadratic(torch.ones(2)), 10)]\n"
    )
    baselines = Baselines(seeds=1)
    for problems, names in (("tiny", [problem.name for problem in bowls()]), (f"{file}:suite", ["mine"])):
        results = evaluate({"adam": AdamRule(0.1)}, problems, "adam_default", baselines=baselines)
        assert (results.suite, results.against) == (problems, ("adam_default",))
        assert [problem.name for problem in results.problems] == names
        compared = compare({"adam": AdamRule(0.1)}, problems, against="adam_default", baselines=baselines)
        assert [problem.name for problem in compared] == names
    with pytest.raises(ValueError, match="there is no suite 'smal'; use one of 'tiny', 'small'"):
        evaluate({"adam": AdamRule(0.1)}, "smal")


def test_costs_of_steps_are_those_of_the_deployed_forms():
    train, valid = load_digits_data().standardised().split(0.2, torch.Generator().manual_seed(0))
    problem = Problem("mlp", ImageMLPTask(train, valid, (96, 96), batch_size=128), 100)
    rules = {"base": load_rule("base"), "muon rule": MuonRule(1e-3)}
    gradient, steps = step_costs(problem, rules, ("adamw", "sgd", "muon", "adam_default", "schedule_free"), repeats=5)
    assert set(steps) == {"base", "muon rule", "adamw", "sgd", "muon", "adam_default"}
    assert 0 < steps["sgd"] < steps["base"]
    assert steps["adamw"] < steps["muon"]  # which orthogonalises 96 x 96
    assert gradient > 0
    assert all(isinstance(parameter, nn.Parameter) for parameter in rules["base"].parameters())


@pytest.fixture
def _tiny_suites(monkeypatch, tmp_path):
    """Suites of bowls, and nothing left in the working directory."""
    for name in ("tiny", "small"):
        monkeypatch.setitem(evaluate_command.SUITES, name, lambda sources: bowls())
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_tiny_suites")
def test_evaluate_command(tmp_path, capsys):
    arguments = ["evaluate", "base", "--suite", "tiny", "--against", "adamw,sgd", "--seeds", "2", "--out", "a b"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Untuned against untuned" not in printed
    assert "base against tuned AdamW, 2 problems with 2 seeds" in printed
    assert "| round |" in printed
    assert "a b/report.html" in printed
    results = Results.load(tmp_path / "a b" / "results.json")
    assert results.command == "lightning-lopt evaluate base --suite tiny --against adamw,sgd --seeds 2 --out 'a b'"
    assert results.suite == "tiny"
    record = results.rules["base"]
    assert record.weights_sha256 == json.loads(Path(load_config()).read_text())["weights_sha256"]
    assert record.trained_on["horizons"] == [100, 3000]
    assert "base was meta-trained on families: categorical" in (tmp_path / "a b" / "report.html").read_text()


@pytest.mark.usefixtures("_tiny_suites")
def test_evaluate_command_counts_untuned_against_untuned(capsys):
    arguments = ["evaluate", "base", "--suite", "tiny", "--against", "adamw,adamw_1e-3,adam_default", "--seeds", "1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.partition("Untuned against untuned:")[2]
    assert (
        "| base | AdamW at 1e-3 | 2 of 2 | 2 of 2 |\n| base | Adam at its default rate | 2 of 2 | 2 of 2 |" in printed
    )


def load_config():
    from lightning_lopt import pretrained

    return pretrained.ROOT / "base" / "config.json"


@pytest.mark.usefixtures("_tiny_suites")
def test_compare_command_with_a_rule_at_its_start(tmp_path, capsys):
    assert main(["compare", "base", "base@start", "--seeds", "1", "--suite", "small"]) == 0
    results = Results.load(tmp_path / "base-base-start-small-report" / "results.json")
    assert list(results.rules) == ["base", "base@start"]
    digests = {record.weights_sha256 for record in results.rules.values()}
    assert len(digests) == 2
    rule = load_rule("base")
    (start,) = run_rules([type(rule)(**rule.config)], bowls()[0], seeds=1)
    torch.testing.assert_close(results.problems[0].measurements["base@start"].train, start.train, rtol=1e-5, atol=1e-7)
    capsys.readouterr()
    for arguments, says in (
        (["evaluate", "nowhere"], "neither a folder nor an embedded rule"),
        (["compare", "base", "base"], "named twice"),
        (["evaluate", "base", "--against", "lion"], "there is no baseline 'lion'"),
        (["evaluate", "base", "--data", "nowhere.npz"], "no such file"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err


def test_files_for_other_loggers(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from lightning_lopt.evaluation.report import log_media

    results = measured()
    logger = CSVLogger(tmp_path, name="", version="log")
    log_media(logger, results, "evaluation")
    text = (tmp_path / "log" / "evaluation.md").read_text()
    assert "| round |" in text
    assert "best baseline" in text
    for picture in ("curves", "profile"):
        assert (tmp_path / "log" / f"evaluation_{picture}.png").read_bytes()[:4] == b"\x89PNG"
    writer = Mock()

    class Board(TensorBoardLogger):
        """One whose writer records calls: the package that writes is not among the requirements of tests."""

        experiment = writer

        def __init__(self):
            pass

    log_media(Board(), results, "evaluation", step=3)
    ((tag, written, step),) = (call.args for call in writer.add_text.call_args_list)
    assert (tag, step) == ("evaluation", 3)
    assert "| round |" in written
    drawn = {call.args[0]: call.args[1] for call in writer.add_figure.call_args_list}
    assert set(drawn) == {"evaluation/profile", "evaluation/curves"}
    assert len(drawn["evaluation/curves"].axes) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny_suites")
def test_weights_and_biases_offline(tmp_path, monkeypatch, wandb_run):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_CONFIG_DIR", "config")):
        monkeypatch.setenv(variable, str(tmp_path / place))
    assert main(["evaluate", "base", "--suite", "tiny", "--seeds", "1", "--out", "out", "--wandb", "project"]) == 0
    (run,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    history, artifacts = wandb_run(run)
    entries = {key: value for row in history for key, value in row.items()}
    results = Results.load(tmp_path / "out" / "results.json")
    page = (tmp_path / "out" / "report.html").read_text()
    numbers = json.loads(page[page.index('id="numbers">') + 13 : page.index("</script>")])
    speed = next(one["value"] for one in numbers if (one["metric"], one["group"]) == ("speedup", "all problems"))
    assert entries["evaluation/base/adamw/speedup"] == pytest.approx(speed)
    for key, kind in (("table", "table-file"), ("numbers", "table-file"), ("curves", "images/separated")):
        assert entries[f"evaluation/{key}/_type"] == kind
    assert {"results", "report"} <= set(artifacts)
    tables = [json.loads(path.read_text()) for path in (run / "files").rglob("*.table.json")]
    (losses,) = [table for table in tables if table["columns"] == ["problem", "split", "base", "tuned AdamW"]]
    assert losses["data"][0][:2] == ["round", "train"]
    final = results.problems[0].measurements["base"].final_train[0]
    assert losses["data"][0][2] == pytest.approx(float(final), rel=1e-5)  # results have six digits
    (long,) = [table for table in tables if table["columns"][0] == "rule"]
    assert len(long["data"]) == len(numbers)
    assert len(list((run / "files").rglob("*.png"))) == 2


def test_a_report_of_real_runs_is_written(tmp_path):
    write_report(measured(), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "slow is behind" in text
