"""Fits that do not go as planned: resumed with other settings, stopped early, searched by a tuner."""

import copy
import logging
import warnings
from itertools import pairwise

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from small_fits import BATCHES, RULE, ManualModule, Module, fit, loader, stream
from torch.utils.data import DataLoader

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter, ResidualRule


class Positions(ResidualRule):
    """Remembers where its schedule stands at each step, from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def at(self, shared, context):
        self.seen.append(float(context.scheduled_step / context.total_steps))
        return super().at(shared, context)


def resumed(tmp_path, kind, first, then):
    """A fit of four epochs that is stopped after two, and goes on with other settings."""
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit(kind(lambda module: LearnedOptimizer(module, Positions())), **{"epochs": 4, **first}, callbacks=[save])
    rule = Positions()
    trainer = fit(
        kind(lambda module: LearnedOptimizer(module, rule)),
        ckpt=tmp_path / "epoch=1.ckpt",
        **{"epochs": 4, **first, **then},
    )
    (optimizer,) = trainer.optimizers
    return optimizer, rule.seen


CHANGES = {
    "more epochs": ({}, {"epochs": 6}),
    "fewer epochs": ({}, {"epochs": 3}),
    "larger batches": ({}, {"data": lambda: DataLoader(loader().dataset, batch_size=8)}),
    "smaller batches": ({}, {"data": lambda: DataLoader(loader().dataset, batch_size=2)}),
    "accumulation": ({}, {"accumulate_grad_batches": 4}),
    "a limit of steps": ({}, {"max_steps": 2 * BATCHES + 5}),
}


@pytest.mark.parametrize("kind", [Module, ManualModule])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_horizon_is_taken_over_without_a_jump(tmp_path, caplog, kind, change):
    first, then = CHANGES[change]
    if kind is ManualModule and change == "accumulation":
        pytest.skip("Lightning refuses accumulation in manual optimization")
    then = {key: value() if callable(value) else value for key, value in then.items()}
    with caplog.at_level(logging.INFO):
        optimizer, seen = resumed(tmp_path, kind, first, then)
    made = optimizer.steps_made
    assert optimizer.total_steps == made
    left = made - 2 * BATCHES
    if kind is Module:
        end = 1 - 1 / made  # where the last step of any run stands
        assert seen == pytest.approx([0.5 + (end - 0.5) * step / (left - 1) for step in range(left)], abs=1e-4)
    assert seen[0] == pytest.approx(0.5, abs=1e-4)
    assert max(b - a for a, b in pairwise(seen)) < 0.2
    planned = 4 * BATCHES
    assert any(f"changes from {planned} to {made} steps" in message for message in caplog.messages)


def test_an_unchanged_horizon_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        _, seen = resumed(tmp_path, Module, {}, {})
    assert seen == pytest.approx([step / (4 * BATCHES) for step in range(2 * BATCHES, 4 * BATCHES)])
    assert [message for message in caplog.messages if "The horizon of" in message] == []


class Stop(EarlyStopping):
    """After the first epoch."""

    def __init__(self):
        super().__init__("loss")

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True

    def _validate_condition_metric(self, logs):
        return True


def test_early_stopping_ends_with_both_numbers():
    with pytest.warns(UserWarning, match=f"the horizon was {2 * BATCHES} steps and {BATCHES} were made"):
        fit(Module(), callbacks=[Stop()])


def test_a_given_horizon_that_does_not_hold_is_named_at_the_start():
    with pytest.warns(UserWarning, match=rf"total_steps=30 was given, but this fit comes to {2 * BATCHES} steps"):
        fit(Module(), adapter=LearnedOptimizerAdapter(total_steps=30))
    with pytest.warns(UserWarning, match=rf"total_steps=40 was given, but this fit comes to {2 * BATCHES} steps"):
        fit(ManualModule(lambda module: LearnedOptimizer(module, RULE, total_steps=40)))


def test_steps_that_were_skipped_are_counted_at_the_end():
    class Diverges(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if batch_idx == 2 else loss

    with pytest.warns(UserWarning, match=f"2 of {2 * BATCHES} steps were skipped.*horizon was 12 steps and 10 were"):
        fit(Diverges())


def test_batches_that_come_in_another_number_each_epoch():
    class Fewer(Module):
        def train_dataloader(self):
            samples = loader().dataset
            return DataLoader(samples[: len(samples) // (1 + self.current_epoch)], batch_size=4)

    trainer = fit(Fewer(), epochs=2, data={}, reload_dataloaders_every_n_epochs=1)
    assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == BATCHES + BATCHES // 2


def test_an_optimizer_step_that_leaves_steps_out():
    class EveryOther(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()

    trainer = fit(EveryOther(), epochs=4)
    assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == 4 * BATCHES // 2


class Sized(Module):
    """With a batch size and a rate for tuners."""

    def __init__(self, own):
        super().__init__(None if own else lambda module: torch.optim.AdamW(module.parameters(), lr=module.lr))
        self.batch_size, self.lr = 2, 1e-2

    def train_dataloader(self):
        return DataLoader(loader().dataset, batch_size=self.batch_size)

    def validation_step(self, batch, batch_idx):
        pass

    val_dataloader = train_dataloader


@pytest.mark.parametrize(("own", "finder_first"), [(True, True), (False, False)], ids=["own", "swap"])
@pytest.mark.parametrize("finder", [BatchSizeFinder, LearningRateFinder])
def test_finders_run_and_leave_no_trace(tmp_path, own, finder_first, finder):
    """The fit after a search is the fit without one, with the batch size or the rate that was found."""
    settings = (
        {"steps_per_trial": 2, "max_trials": 2}
        if finder is BatchSizeFinder
        else {"num_training_steps": 15, "update_attr": False}
    )
    found, direct = Sized(own), Sized(own)
    search, adapter = finder(**settings), LearnedOptimizerAdapter(None if own else RULE)
    pair = (search, adapter) if finder_first else (adapter, search)
    trainer = fit(found, adapter=pair[0], callbacks=pair[1:], data={}, default_root_dir=tmp_path)
    direct.batch_size = found.batch_size
    other = fit(direct, adapter=LearnedOptimizerAdapter(None if own else RULE), data={})
    assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == other.global_step
    for x, y in zip(found.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)


def test_tuner(tmp_path):
    trainer = L.Trainer(
        max_epochs=2,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[LearnedOptimizerAdapter(RULE)],
    )
    module = Sized(own=False)
    assert Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=2) == 4
    assert Tuner(trainer).lr_find(module, num_training=15) is not None
    module = Sized(own=False)
    trainer.fit(module)
    assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == 24


def test_bare_parameters_get_the_roles_of_the_module():
    trainer = fit(Module(lambda module: LearnedOptimizer(module.parameters(), RULE)), epochs=1)
    table = {line.split()[0]: line.split()[2] for line in trainer.optimizers[0].role_table().splitlines()[1:]}
    assert table == {"net.0.weight": "matrix", "net.0.bias": "vector", "net.2.weight": "head", "net.2.bias": "vector"}


def test_a_pretrained_module_is_pointed_out_once_and_not_on_resume(tmp_path):
    class Normalised(Module):
        def __init__(self):
            super().__init__()
            self.net.insert(1, torch.nn.BatchNorm1d(8))

    def warned(module, **settings):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            fit(module, **settings)
        return [str(w.message) for w in record if "looks pretrained" in str(w.message)]

    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    module = Normalised()
    assert warned(module, callbacks=[save]) == []
    assert warned(Normalised(), ckpt=tmp_path / "epoch=0.ckpt") == []
    (message,) = warned(module)
    assert "rule 'residual'" in message.lower()


def test_careful_rules_say_how_many_tensors_look_pretrained(caplog):
    class Normalised(Module):
        def __init__(self):
            super().__init__(lambda module: torch.optim.SGD(module.parameters(), 0.1))
            self.net.insert(1, torch.nn.LayerNorm(8))

    def said(module, **settings):
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(module, adapter=LearnedOptimizerAdapter("base"), **settings)
        return [r.getMessage() for r in caplog.records if "look pretrained" in r.getMessage()]

    assert said(Normalised()) == []
    module = Normalised()
    with torch.no_grad():
        module.net[1].weight.add_(0.1 * torch.randn(8))
        module.net[1].bias.add_(0.1 * torch.randn(8))
    (line,) = said(copy.deepcopy(module))
    assert line.startswith("5 of 6 tensors look pretrained ('net.0.weight', 'net.0.bias', 'net.1.weight' and 2 more)")
    assert "tensors up to 9 times shorter, for 2 epochs" in line
    (line,) = said(module, data=stream(), max_steps=4)
    assert "tensors up to 55 times shorter, for an unknown number of epochs" in line


def test_a_copy_of_the_optimizer_holds_no_trainer():
    class Copies(Module):
        def on_fit_start(self):
            self.copied = copy.deepcopy(self.optimizers(use_pl_optimizer=False))

    module = Copies()
    trainer = fit(module, epochs=1)
    assert module.copied.total_steps is None
    assert trainer.optimizers[0].total_steps == BATCHES


@pytest.mark.parametrize("kind", [Module, ManualModule])
def test_state_of_another_version_is_no_obstacle(tmp_path, kind):
    """Checkpoints without plans, and with numbers that this version does not know."""
    fit(kind(), epochs=1, callbacks=[ModelCheckpoint(tmp_path, filename="one")])
    checkpoint = torch.load(tmp_path / "one.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["LearnedOptimizerAdapter"]
    for pace in state["horizons"].get("paces", ()):
        pace["later"] = 1
    torch.save(checkpoint, tmp_path / "later.ckpt")
    state.pop("horizons")
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    for name in ("later", "earlier"):
        trainer = fit(kind(), epochs=3, ckpt=tmp_path / f"{name}.ckpt")
        assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == 3 * BATCHES
