"""Modules that moved can still be imported from their former places, with the public names that they had there."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from lightning_lopt.moved import MOVED

NAMES = {
    "callbacks.meta_training": "MetaTraining",
    "evaluation.assess": "Assessment assess",
    "evaluation.assess.assessment": "Assessment",
    "evaluation.assess.run": "assess",
    "evaluation.evaluate": "evaluate",
    "evaluation.metrics.base": "ContestMetric PairedMetric",
    "evaluation.metrics.bootstrap": "RESAMPLES LEVEL Statistic iqm median mean worst CENTRE MEAN WORST interval",
    "evaluation.metrics.contest": "Contest",
    "evaluation.metrics.levels": "FLOOR CAP relative log_ratio final_loss lowest median_loss",
    "evaluation.metrics.losses": "SPLITS normalised_loss NormalisedLoss LossRatio WorstRegret",
    "evaluation.metrics.rates": "wins diverged WinRate DivergenceRate",
    "evaluation.metrics.reported": "REPORTED ReportedMetric Section columns",
    "evaluation.metrics.speedup": "SMOOTHING smoothed steps_to step_speedup StepSpeedup WallClockSpeedup",
    "evaluation.problem": "Problem",
    "evaluation.problem_result": "ProblemResult",
    "evaluation.report.figures": "curves profile empty_figure",
    "evaluation.report.tables": "TextTable finals label log_ratios one_line outcome overall",
    "evaluation.rule_record": "RuleRecord",
    "evaluation.runs": "run_rules",
    "io.build": "TensorSpec build_rule check_arguments",
    "io.files": "RuleFileError cause show",
    "io.header": "TensorSpec read_header",
    "rules.accumulators": "average constants rates",
    "rules.entry_network": "EntryNetwork apply_network",
    "rules.mlp": "MomentumFeatures",
}
"""Names that users imported from a place; other former places of rules had no public names."""


@pytest.mark.parametrize("former", MOVED)
def test_a_former_place_is_the_present_module(former):
    assert import_module(f"lightning_lopt.{former}") is import_module(f"lightning_lopt.{MOVED[former]}")


@pytest.mark.parametrize("former", NAMES)
def test_public_names_are_found_at_their_former_place(former):
    module = import_module(f"lightning_lopt.{former}")
    assert {name for name in NAMES[former].split() if not hasattr(module, name)} == set()


@pytest.mark.parametrize("former", MOVED)
def test_a_former_place_has_the_present_name_and_specification(former):
    module = import_module(f"lightning_lopt.{former}")
    assert module.__name__ == module.__spec__.name == f"lightning_lopt.{MOVED[former]}"


def test_the_first_import_may_be_that_of_a_former_place():
    """In a new process; nothing is imported twice."""
    code = (
        "import json, sys\n"
        "from lightning_lopt.evaluation.assess.run import assess\n"
        "import lightning_lopt.evaluation.runs\n"
        "from lightning_lopt import assess as present\n"
        "modules = {id(m): m.__file__ for n, m in sys.modules.items() if n.startswith('lightning_lopt')}\n"
        "files = list(modules.values())\n"
        "print(json.dumps([assess is present, len(files) == len(set(files)), hasattr(lightning_lopt.rules, 'roles')]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [True, True, True]


@pytest.mark.parametrize("name", ["evaluation.assess.batches", "evaluation.no_such_module"])
def test_a_place_without_a_module_is_an_import_error(name):
    with pytest.raises(ModuleNotFoundError, match=name.rpartition(".")[2]):
        import_module(f"lightning_lopt.{name}")
