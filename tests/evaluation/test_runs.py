"""Complete runs for measuring, against loops that train one model at a time."""

import pytest
import torch

from lightning_lopt import AdamRule, ScheduleFreeAdamRule, StepContext
from lightning_lopt.evaluation import Baselines, compare, evaluate, measurement
from lightning_lopt.evaluation.measurement import CHECKPOINTS, Problem, in_windows, run_rules, window_ends
from lightning_lopt.meta.runs import device_of
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLPTask, LabelledImages, Quadratic


@pytest.fixture(scope="module")
def task():
    draws = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    inputs = torch.randn(60, 1, 3, 3, generator=draws) + targets[:, None, None, None]
    data = LabelledImages(inputs, targets, 3, "blobs")
    return ImageMLPTask(*data.split(0.25, draws), (8,), batch_size=4)


def one_at_a_time(task, horizon, seeds, make):
    """Losses before each step (T, S), validation loss, accuracy (V, S), final loss (S,) by torch's optimizers."""
    draws = generator(0, "batches")
    models = [task.init(generator(0, "init", seed)) for seed in range(seeds)]
    for model in models:
        for value in model.values():
            value.requires_grad_()
    optimizers = [make(list(model.values())) for model in models]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, horizon) for one in optimizers]
    losses, valid, accuracy = [], [], []
    for step in range(horizon):
        batches, row = task.batch(draws, seeds), []
        for seed, model in enumerate(models):
            optimizers[seed].zero_grad()
            loss = task.loss(model, {name: value[seed] for name, value in batches.items()})
            loss.backward()
            optimizers[seed].step()
            schedules[seed].step()
            row.append(loss.detach())
        losses.append(torch.stack(row))
        if step + 1 in window_ends(horizon, CHECKPOINTS):
            held_out = task.full_batch("valid")
            valid.append(torch.stack([task.loss(model, held_out).detach() for model in models]))
            accuracy.append(torch.stack([task.metrics(model, held_out)["accuracy"] for model in models]))
    final = torch.stack([task.loss(model, task.full_batch("train")).detach() for model in models])
    return torch.stack(losses), torch.stack(valid), torch.stack(accuracy), final


@pytest.mark.parametrize("horizon", [7, 45, 130])
def test_equals_training_one_model_at_a_time(task, horizon):
    """Two learning rates and three seeds side by side; windows, checkpoints, metrics and last losses."""
    rates = (1e-3, 1e-2)
    measured = run_rules([AdamRule(rate, schedule="cosine") for rate in rates], task, horizon=horizon, seeds=3)
    for rate, run in zip(rates, measured, strict=True):
        losses, valid, accuracy, final = one_at_a_time(
            task, horizon, 3, lambda params, rate=rate: torch.optim.AdamW(params, lr=rate, weight_decay=0.0)
        )
        torch.testing.assert_close(run.train, in_windows(losses), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run.valid, valid, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run.final_train, final, rtol=1e-4, atol=1e-5)
        assert list(run.metrics) == ["accuracy"]
        torch.testing.assert_close(run.metrics["accuracy"], accuracy)
        assert (run.horizon, run.learning_rate) == (horizon, None)
    assert [run.optimizer for run in measured] == ["0", "1"]


def test_losses_are_measured_where_the_rule_says():
    """Schedule-free AdamW on a bowl without noise: the losses are those of the average x, not of y."""
    problem = Problem("bowl", Quadratic(torch.tensor([1.0, 3.0])), 30)
    rule = ScheduleFreeAdamRule(0.3, warmup=0.0)
    (run,) = run_rules([rule], problem, seeds=1)
    params = problem.task.init(generator(0, "init", 0))
    state, batch = rule.init_state(params, {}), problem.task.full_batch("train")
    losses = []
    for step in range(30):
        grads, loss, _ = problem.task.gradient(params, batch)
        losses.append(loss)
        updates, state = rule(params, grads, state, StepContext(torch.tensor(float(step)), torch.tensor(30.0)))
        params = {name: (value + updates[name]).detach() for name, value in params.items()}
    average = problem.task.loss(rule.evaluation_params(params, state), batch).detach()
    assert float(run.final_train) == pytest.approx(float(average), rel=1e-4)
    assert float(average) != pytest.approx(float(problem.task.loss(params, batch)), rel=0.01)
    torch.testing.assert_close(run.train[:, 0], torch.stack(losses).detach(), rtol=1e-4, atol=1e-6)


def test_the_horizon_is_the_problems_unless_given(task):
    rules = [AdamRule(schedule="cosine")]
    problem = Problem("blobs", task, 12)
    assert run_rules(rules, problem, seeds=1)[0].horizon == 12
    assert run_rules(rules, problem, horizon=5, seeds=1)[0].horizon == 5


class DevicesOfRules(Exception):
    """Raised instead of a run."""


@pytest.fixture
def _no_runs(monkeypatch):
    def run(rules, *arguments):
        raise DevicesOfRules({str(device_of(rule)) for rule in rules})

    monkeypatch.setattr(measurement, "RuleModels", run)


@pytest.mark.usefixtures("_no_runs")
def test_rules_run_on_the_device_of_the_baselines_and_stay_on_their_own(task):
    """The device ``meta``, which every machine has, is not that of the rules."""
    rules, problem = {"slow": AdamRule(1e-3), "fast": AdamRule(1e-2)}, Problem("blobs", task, 3)
    baselines = Baselines(seeds=1, shipped=False, device="meta")
    with pytest.raises(DevicesOfRules, match=r"\{'meta'\}"):
        next(compare(rules, [problem], baselines=baselines))
    with pytest.raises(DevicesOfRules, match=r"\{'meta'\}"):
        evaluate(rules, [problem], baselines=baselines)
    with pytest.raises(DevicesOfRules, match=r"\{'cpu'\}"):
        run_rules(list(rules.values()), problem, seeds=1)
    assert {device_of(rule).type for rule in rules.values()} == {"cpu"}


def test_what_cannot_be_run_gets_one_sentence(task):
    with pytest.raises(ValueError, match="give horizon, or a Problem"):
        run_rules([AdamRule()], task, seeds=1)
    with pytest.raises(ValueError, match="0 rules, 1 seeds"):
        run_rules([], task, horizon=3, seeds=1)
    with pytest.raises(ValueError, match="1 rules, 0 seeds"):
        run_rules([AdamRule()], task, horizon=3, seeds=0)
