"""Optimizers of ``torch.optim``'s interface on problems, against loops by hand; and those of other packages."""

import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lightning_lopt.evaluation.baselines as baselines_module
from lightning_lopt import AdamRule
from lightning_lopt.cli import main
from lightning_lopt.evaluation import evaluate_command
from lightning_lopt.evaluation.baselines import BASELINES, Baselines, Sweep
from lightning_lopt.evaluation.evaluator import evaluate
from lightning_lopt.evaluation.measurement import CHECKPOINTS, Problem, in_windows, run_rules, window_ends
from lightning_lopt.evaluation.step_cost import step_costs
from lightning_lopt.evaluation.torch_optimizers import PackagedOptimizer, run_optimizers
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import Quadratic
from lightning_lopt.tasks.transforms import ChangingDataTask

PACKAGED = {name: sweep.packaged for name, sweep in BASELINES.items() if sweep.packaged is not None}


def needs(name):
    packaged = PACKAGED[name]
    if packaged.installed_version is None:
        pytest.skip(f"needs lightning-lopt[peers]: {packaged.package} is not installed")


def bowl(horizon=45, curvature=1.0):
    return Problem("bowl", Quadratic(torch.tensor([curvature, 2 * curvature, 3 * curvature]), noise=0.1), horizon)


def by_hand(problem, seeds, make, cosine):
    """Losses before each step (T, S), validation losses (V, S), final training losses (S,): one model at a time."""
    task, horizon, runs = problem.task, problem.horizon, []
    draws = generator(0, "batches")
    batches = [task.batch(draws, seeds) for _ in range(horizon)]
    for seed in range(seeds):
        model = {name: value.requires_grad_() for name, value in task.init(generator(0, "init", seed)).items()}
        optimizer = make(list(model.values()))
        averages = hasattr(optimizer, "eval")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, horizon) if cosine else None
        losses, valid = [], []
        for step, batch in enumerate(batches, 1):
            if averages:
                optimizer.train()
            optimizer.zero_grad()
            loss = task.loss(model, {name: value[seed] for name, value in batch.items()})
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            losses.append(loss.detach())
            if step in window_ends(horizon, CHECKPOINTS):
                if averages:
                    optimizer.eval()
                valid.append(task.loss(model, task.full_batch("valid")).detach())
        final = task.loss(model, task.full_batch("train")).detach()
        runs.append((torch.stack(losses), torch.stack(valid), final))
    return tuple(torch.stack(values, -1) for values in zip(*runs, strict=True))


def assert_same(run, losses, valid, final):
    torch.testing.assert_close(run.train, in_windows(losses), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.valid, valid, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.final_train, final, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_equals_a_loop_by_hand(schedule):
    makes = [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.05, momentum=0.9)]
    measured = run_optimizers(makes, bowl(), seeds=3, schedule=schedule)
    assert [run.optimizer for run in measured] == ["0", "1"]
    for make, run in zip(makes, measured, strict=True):
        assert_same(run, *by_hand(bowl(), 3, make, schedule == "cosine"))


def test_models_and_batches_are_those_of_rules():
    """Carried entries of a task too: here they say when the data change."""
    task = Quadratic(torch.tensor([1.0, 2.0]), noise=0.1)
    problem = Problem("change", ChangingDataTask(task, Quadratic(torch.tensor([5.0, 1.0]), noise=0.3), 20), 40)
    (rule,) = run_rules([AdamRule(0.05, schedule="cosine")], problem, seeds=2)
    (run,) = run_optimizers([partial(torch.optim.Adam, lr=0.05)], problem, seeds=2, schedule="cosine")
    for name in ("train", "valid", "final_train"):
        torch.testing.assert_close(getattr(run, name), getattr(rule, name), rtol=1e-4, atol=1e-6)


class Ahead(torch.optim.SGD):
    """In the mode of evaluation the parameters are 0, where a bowl has its minimum."""

    kept = None

    @torch.no_grad()
    def eval(self):
        params = self.param_groups[0]["params"]
        self.kept = [param.clone() for param in params]
        for param in params:
            param.zero_()

    @torch.no_grad()
    def train(self):
        for param, value in zip(self.param_groups[0]["params"], self.kept or [], strict=False):
            param.copy_(value)


def test_losses_are_measured_in_the_mode_of_evaluation():
    (run,) = run_optimizers([partial(Ahead, lr=0.01)], bowl(), seeds=2)
    (plain,) = run_optimizers([partial(torch.optim.SGD, lr=0.01)], bowl(), seeds=2)
    torch.testing.assert_close(run.train, plain.train)
    assert run.valid.abs().max() < 1e-3 < plain.valid.min()


def test_what_diverges_is_not_finite_and_leaves_others_alone():
    problem = bowl(300, curvature=10.0)
    good, bad = partial(torch.optim.SGD, lr=0.01), partial(torch.optim.SGD, lr=10.0)
    run, diverged = run_optimizers([good, bad], problem, seeds=2)
    assert not diverged.final_train.isfinite().any()
    torch.testing.assert_close(run.train, run_optimizers([good], problem, seeds=2)[0].train)


@pytest.mark.parametrize("name", PACKAGED)
def test_optimizers_of_other_packages_equal_a_loop_by_hand(name):
    needs(name)
    sweep, problem = BASELINES[name], bowl()
    assert (sweep.packaged.version in sweep.packaged.full_name) == (
        sweep.packaged.installed_version == sweep.packaged.version
    )
    for rate, run in zip(sweep.learning_rates, sweep.run(problem, seeds=2, device="cpu"), strict=True):
        made = sweep.make(rate)
        assert_same(run, *by_hand(problem, 2, partial(made.build, horizon=problem.horizon), made.schedule == "cosine"))


@pytest.mark.parametrize("name", PACKAGED)
def test_costs_of_steps_of_other_packages(name):
    needs(name)
    _, steps = step_costs(bowl(), {"rule": AdamRule()}, (name,), repeats=3)
    assert steps[name] > 0


@pytest.fixture
def peer(monkeypatch):
    """A baseline ``"peer"`` of a package that is made up; a function sets its installed version."""
    module = ModuleType("made_up_peer")
    module.SGD = torch.optim.SGD
    monkeypatch.setitem(sys.modules, "made_up_peer", module)
    known = metadata.version

    def installed(version):
        def of(package):
            if package != "made_up_peer":
                return known(package)
            if version is None:
                raise metadata.PackageNotFoundError(package)
            return version

        monkeypatch.setattr(metadata, "version", of)

    def make(lr, **options):
        return PackagedOptimizer("made_up_peer", "1.0", "SGD", lr, options, schedule="cosine")

    monkeypatch.setitem(baselines_module.BASELINES, "peer", Sweep(make, (0.1,), "made up"))
    installed("1.0")
    return installed


SENTENCE = r"SGD comes with the package made_up_peer, .* run pip install -e .\.\[peers\]. in the checkout"


def test_known_results_need_no_package(peer, tmp_path):
    path = tmp_path / "baselines.json"
    computed = Baselines(path, seeds=2)(bowl(), "peer")
    assert computed.learning_rate is None
    peer(None)
    again = Baselines(path, seeds=2)
    torch.testing.assert_close(again(bowl(), "peer").train, computed.train, rtol=1e-5, atol=1e-7)
    results = evaluate({"adam": AdamRule()}, [bowl()], ("peer",), baselines=again)
    assert results.environment["made_up_peer"] == "1.0 (not installed: known results, no costs)"
    assert set(results.problems[0].step_seconds) == {"adam"}
    with pytest.raises(ImportError, match=SENTENCE):
        again(bowl(46), "peer")


def test_a_missing_package_is_said_before_anything_is_measured(peer, tmp_path, monkeypatch, capsys):
    peer(None)
    with pytest.raises(ImportError, match=SENTENCE):
        evaluate({"adam": AdamRule()}, [bowl()], ("adamw", "peer"), folder=tmp_path / "measured")
    assert not (tmp_path / "measured").exists()
    monkeypatch.setitem(evaluate_command.SUITES, "tiny", lambda sources: [bowl()])
    monkeypatch.setattr(PackagedOptimizer, "installed_version", None)
    for command in (
        ["evaluate", "base", "--suite", "tiny", "--against", "peer", "--out", str(tmp_path / "report")],
        ["baselines", "--suite", "tiny", "--optimizer", "soap", "--out", str(tmp_path / "file.json")],
    ):
        assert main(command) == 1
        assert "which is not installed; run pip install" in capsys.readouterr().err


def test_version_and_settings_are_part_of_the_key(peer, monkeypatch):
    known = Baselines(seeds=1, shipped=False)
    keys = {known.key(bowl(), "peer")}
    peer(None)
    assert known.key(bowl(), "peer") in keys  # the version of known results
    peer("1.1")
    keys.add(known.key(bowl(), "peer"))
    make = BASELINES["peer"].make
    monkeypatch.setitem(BASELINES, "peer", Sweep(lambda lr: make(lr, momentum=0.9), (0.1,), "made up"))
    keys.add(known.key(bowl(), "peer"))
    monkeypatch.setitem(BASELINES, "peer", Sweep(make, (0.2,), "made up"))
    keys.add(known.key(bowl(), "peer"))
    assert len(keys) == 4


def test_the_extra_has_the_versions_of_known_results():
    tomllib = pytest.importorskip("tomllib", reason="comes with Python 3.11")
    path = Path(__file__).parents[2] / "pyproject.toml"
    extra = tomllib.loads(path.read_text())["project"]["optional-dependencies"]["peers"]
    assert set(extra) == {f"{packaged.package}=={packaged.version}" for packaged in PACKAGED.values()}
