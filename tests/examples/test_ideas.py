"""Ideas tried in the research log: at 0 each leaves `base` as it is, elsewhere it does what its name says."""

import importlib
from pathlib import Path

import pytest
import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.measurement import run_rules
from lightning_lopt.rules.base import StepContext
from lightning_lopt.tasks.mixtures import make_families
from lightning_lopt.tasks.task_mixture import TaskMixture

FOLDER = Path(__file__).parents[2] / "examples" / "research"
CHANGES = [
    "ideas.slow_share+0.5",
    "ideas.slow_share+0.5,ideas.slow_growth+0.6",
    "ideas.orthogonal_share+0.3",
    "ideas.entry_power+0.3",
    "ideas.own_caution+0.7",
    "ideas.cautious_decay+1",
    "ideas.momentum_coherence+0.4",
    "ideas.moment_coherence+0.4",
    "constants.decay_taper+1",
    "constants.momentum_horizon+0.5",
]


@pytest.fixture
def constants(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # its scripts import each other
    return importlib.import_module("constants")


@pytest.fixture(scope="module")
def task():
    return TaskMixture(make_families("teacher")).sample(33)


def final(rules, task):
    return [float(run.final_train) for run in run_rules(rules, task, horizon=8, seeds=1)]


def test_without_ideas_it_is_base(constants, task):
    with_ideas = constants.changed("base", "", " ".join(CHANGES))
    assert with_ideas.orthogonal
    assert with_ideas.powers
    assert final([with_ideas], task) == final([load_rule("base")], task)


def test_each_idea_changes_the_run(constants, task):
    names = ["", *CHANGES]
    losses = final([constants.changed("base", change, " ".join(names)) for change in names], task)
    assert torch.tensor(losses).isfinite().all()
    assert len(set(losses)) == len(losses)


def first_update(constants, change):
    """What the first step adds to a vector of ones of both signs."""
    rule = constants.changed("base", change, "ideas.")
    params = {"x": torch.tensor([1.0, -1.0, 1.0, -1.0])}
    grads = {"x": torch.tensor([1.0, 1.0, -1.0, -1.0])}
    context = StepContext(torch.tensor(0.0), torch.tensor(500.0), torch.tensor(1.0))
    with torch.no_grad():
        return rule(params, grads, rule.init_state(params, {}), context)[0]["x"]


def test_cautious_decay_is_none_where_the_step_leaves_zero(constants):
    plain = first_update(constants, "")
    without = first_update(constants, "constants.log_weight_decay-50")
    cautious = first_update(constants, "ideas.cautious_decay+1")
    leaves = torch.tensor([False, True, True, False])
    assert (plain != without).all()
    torch.testing.assert_close(cautious, torch.where(leaves, without, plain))


def test_momentum_remembers_longer_on_longer_runs_than_500_steps(constants):
    longer = constants.changed("base", "constants.momentum_horizon+1", "momentum_horizon").constants
    plain = load_rule("base").constants
    for horizon, factor in ((500, 1.0), (2000, 2.0)):
        context = StepContext(torch.tensor(0.0), torch.tensor(float(horizon)))
        rates = [own.at(context)["matrix"].momentum_rate for own in (plain, longer)]
        before, after = ((1 - rate) / rate for rate in rates)  # steps remembered
        torch.testing.assert_close(after, factor * before)
