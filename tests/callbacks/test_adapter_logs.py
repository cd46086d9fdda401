"""What the adapter writes to loggers, and at which steps."""

import warnings

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from small_fits import BATCHES, RULE, ManualModule, Module, fit

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter
from lightning_lopt.io.identity import weights_sha256


class Memory(Logger):
    """Keeps what it is given."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.metrics, self.hyperparameters = [], {}

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params, *args, **kwargs):
        self.hyperparameters |= params

    def of_adapter(self):
        return [(step, metrics) for step, metrics in self.metrics if "learned_optimizer/skipped_steps" in metrics]


class Logging(Module):
    """Logs its loss, keeps its parameters before and after each step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def on_train_start(self):
        self.kept = [[param.detach().clone() for param in self.parameters()]]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.kept.append([param.detach().clone() for param in self.parameters()])


def fit_with(module, logger, every=3, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*log_every_n_steps.*")
        return fit(module, logger=logger, log_every_n_steps=every, **settings)


@pytest.mark.parametrize("window", [1, 2])
def test_curves_come_at_the_steps_at_which_the_trainer_logs(window):
    memory, module = Memory(), Logging()
    fit_with(module, memory, every=2, accumulate_grad_batches=window)
    steps = [step for step, _ in memory.of_adapter()]
    assert steps == [step for step, metrics in memory.metrics if "loss" in metrics]
    assert steps == list(range(1, 2 * BATCHES // window, 2))


def test_relative_steps_are_those_of_the_parameters():
    memory, module = Memory(), Logging()
    fit_with(module, memory)
    (_, metrics), *_ = memory.of_adapter()
    before, after = module.kept[2], module.kept[3]
    roles = {"matrix": [0], "vector": [1, 3], "head": [2]}
    for role, places in roles.items():
        moved = sum((after[place] - before[place]).square().sum() for place in places)
        size = sum(before[place].square().sum() for place in places)
        assert metrics[f"learned_optimizer/relative_step/{role}"] == pytest.approx(
            float((moved / size).sqrt()), rel=1e-3
        )
    assert metrics["learned_optimizer/skipped_steps"] == 0
    assert metrics["learned_optimizer/past_horizon"] == 0


def test_name_revision_and_hash_of_the_rule():
    memory = Memory()
    fit_with(
        Module(lambda module: torch.optim.AdamW(module.parameters())), memory, adapter=LearnedOptimizerAdapter("base")
    )
    found = memory.hyperparameters["learned_optimizer"]
    optimizer = LearnedOptimizer(Module())
    assert found["rule"] == "base"
    assert found["architecture"] == "residual"
    assert found["sha256"] == weights_sha256(optimizer.rule)


def test_nothing_is_logged_where_it_is_turned_off():
    memory = Memory()
    fit_with(Logging(), memory, adapter=LearnedOptimizerAdapter(log=False))
    assert memory.of_adapter() == []
    assert "learned_optimizer" not in memory.hyperparameters


def test_past_the_horizon_and_skipped_steps():
    class Diverges(Logging):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 1 else loss

    memory = Memory()
    fit_with(Diverges(), memory, every=1, adapter=LearnedOptimizerAdapter(total_steps=8))
    found = [metrics for _, metrics in memory.of_adapter()]
    assert [metrics["learned_optimizer/skipped_steps"] for metrics in found] == [0, *[1] * 6, *[2] * 5]
    assert [metrics["learned_optimizer/past_horizon"] for metrics in found] == [*[0] * 10, 1, 1]


def test_steps_that_the_gradient_scaler_skips():
    """Scaled gradients overflow float16 until the scale has come down."""
    memory = Memory()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    with pytest.warns(UserWarning, match=r"the gradient scaler skipped \d+ steps; the horizon was 12 steps"):
        trainer = fit_with(Logging(), memory, every=12, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    ((_, metrics),) = memory.of_adapter()
    assert metrics["learned_optimizer/scaler_skipped_steps"] == trainer.global_step - trainer.optimizers[0].calls > 0


def test_manual_optimization_and_several_optimizers(tmp_path):
    class Two(ManualModule):
        def __init__(self):
            super().__init__(lambda m: [LearnedOptimizer(m.net[0], RULE), LearnedOptimizer(m.net[2], RULE)])

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            loss = Module.training_step(self, batch, batch_idx)
            first.zero_grad()
            second.zero_grad()
            self.manual_backward(loss)
            first.step()
            if batch_idx % 3 == 0:
                second.step()

    memory = Memory()
    fit_with(Two(), [memory, CSVLogger(tmp_path)], every=2)
    first, second = (
        [step for step, metrics in memory.metrics if f"learned_optimizer/{index}/relative_step/vector" in metrics]
        for index in range(2)
    )
    assert first == [1, 3, 5, 7, 9, 11]
    assert second == [3, 7, 9]  # once a step was made after it was asked for
