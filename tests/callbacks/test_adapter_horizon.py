"""The number of steps that the rule plans for, in every way a Trainer can be told when to stop."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from small_fits import BATCHES, RULE, ManualModule, Module, fit, fit_of_pytorch_lightning, loader, stream

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter


def planned_and_made(trainer):
    (optimizer,) = trainer.optimizers
    return optimizer.total_steps, int(optimizer.param_groups[0]["step"])


KNOWN = {
    "epochs": ({}, 2 * BATCHES),
    "accumulation": ({"accumulate_grad_batches": 4}, 4),
    "max_steps": ({"epochs": -1, "max_steps": 5}, 5),
    "max_steps with accumulation": ({"epochs": -1, "max_steps": 3, "accumulate_grad_batches": 4}, 3),
    "epochs before max_steps": ({"max_steps": 100}, 2 * BATCHES),
    "max_steps before epochs": ({"max_steps": 7}, 7),
    "half of the batches": ({"limit_train_batches": 0.5}, BATCHES),
    "overfit_batches": ({"overfit_batches": 2}, 4),
    "fast_dev_run": ({"fast_dev_run": True}, 1),
    "stream with a limit": ({"data": stream, "limit_train_batches": 4}, 8),
    "stream with max_steps": ({"data": stream, "max_steps": 5}, 5),
}


@pytest.mark.parametrize(("settings", "steps"), KNOWN.values(), ids=KNOWN)
def test_the_trainer_makes_as_many_steps_as_planned(settings, steps):
    settings = {key: value() if callable(value) else value for key, value in settings.items()}
    assert planned_and_made(fit(Module(), **settings)) == (steps, steps)


@pytest.mark.parametrize("kind", [Module, ManualModule])
def test_where_no_end_is_known_it_has_to_be_said(kind):
    with pytest.raises(ValueError, match=r"the end of this fit is not known; set max_steps.*total_steps=\.\.\.\)"):
        fit(kind(), data=stream())
    trainer = fit(kind(), data=stream(), adapter=LearnedOptimizerAdapter(total_steps=20))
    assert trainer.optimizers[0].total_steps == 20
    assert planned_and_made(fit(kind(), data=stream(), epochs=-1, max_steps=8)) == (8, 8)
    fit(kind(lambda module: LearnedOptimizer(module, AdamRule())), data=stream(), epochs=1)


@pytest.mark.parametrize("scheduling", [{0: 1}, {0: 3}, {0: 1, 1: 4}, {0: 5, 2: 2}], ids=str)
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_accumulation_that_changes_between_epochs(package, scheduling):
    callbacks = pytest.importorskip(package).callbacks
    factors = [scheduling[max(epoch for epoch in scheduling if epoch <= now)] for now in range(3)]
    steps = sum(-(-BATCHES // factor) for factor in factors)
    settings = {"epochs": 3, "callbacks": [callbacks.GradientAccumulationScheduler(dict(scheduling))]}
    trainer = fit(Module(), **settings) if package == "lightning.pytorch" else fit_of_pytorch_lightning(**settings)
    assert planned_and_made(trainer) == (steps, steps)


def test_the_adapters_number_wins_over_the_optimizers_and_that_over_the_estimate():
    own = Module(lambda module: LearnedOptimizer(module, RULE, total_steps=30))
    assert fit(own).optimizers[0].total_steps == 30
    assert fit(own, adapter=LearnedOptimizerAdapter(total_steps=40)).optimizers[0].total_steps == 40
    assert fit(own, adapter=LearnedOptimizerAdapter(RULE, total_steps=50)).optimizers[0].total_steps == 50
    with pytest.raises(ValueError, match="total_steps must be a whole number"):
        LearnedOptimizerAdapter(total_steps=0)


class ThreeSteps(ManualModule):
    """Three steps a batch, of which the Trainer's estimate knows nothing."""

    def training_step(self, batch, batch_idx):
        for _ in range(3):
            super().training_step(batch, batch_idx)


@pytest.mark.parametrize("given", [None, 3 * BATCHES])
def test_several_steps_a_batch(given):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(past its total_steps|horizon was|was given).*")
        trainer = fit(ThreeSteps(), epochs=1, adapter=LearnedOptimizerAdapter(total_steps=given))
    assert planned_and_made(trainer) == (3 * BATCHES, 3 * BATCHES)


def second_fit(adapter, path=None):
    """Two fits of one Trainer, with a checkpoint in the middle of the second."""
    module = Module()
    save = ModelCheckpoint(path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    trainer = fit(module, adapter=adapter, callbacks=[save])
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, loader())
    return module, trainer


def test_resuming_within_a_second_fit_plans_for_the_same_steps(tmp_path):
    straight, trainer = second_fit(LearnedOptimizerAdapter(), tmp_path)
    assert planned_and_made(trainer) == (3 * BATCHES, 3 * BATCHES)
    resumed = Module()
    again = fit(resumed, epochs=5, ckpt=tmp_path / "epoch=3.ckpt")
    assert planned_and_made(again) == (3 * BATCHES, 3 * BATCHES)
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


def test_resuming_after_overflows_plans_for_the_same_steps(tmp_path):
    """A gradient scaler leaves out steps that the Trainer counts."""

    def overflowing():
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**22))]

    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    straight = Module()
    trainer = fit(straight, epochs=3, callbacks=[save], plugins=overflowing())
    planned, made = planned_and_made(trainer)
    assert planned == trainer.global_step == 3 * BATCHES
    assert 0 < made < planned - 1
    resumed = Module()
    again = fit(resumed, epochs=3, ckpt=tmp_path / "epoch=1.ckpt", plugins=overflowing())
    assert planned_and_made(again) == (planned, made)
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)
