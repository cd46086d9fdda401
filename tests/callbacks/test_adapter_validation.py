"""The validation loss on its way from the module to the rule."""

import logging

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from small_fits import Module, fit, loader
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter, ResidualRule


class Told(ResidualRule):
    """Remembers validation losses and where in the run they came."""

    def __init__(self):
        super().__init__(direction=False, controller=False, reads_validation=True)
        self.told = []

    def validated(self, state, loss, progress):
        self.told.append((float(loss), round(float(progress), 3)))
        return super().validated(state, loss, progress)


class Validated(Module):
    """Logs a metric of each name at each validation: 1, 2, ... times its factor."""

    def __init__(self, rule, names):
        super().__init__(lambda module: LearnedOptimizer(module, rule))
        self.names, self.count = names, 0

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.count += 1
            self.log_dict({name: factor * self.count for name, factor in self.names.items()})

    def validation_step(self, batch, batch_idx):
        pass


def told(names, callbacks=(), epochs=3, monitor="auto", ckpt=None, rule=None, **settings):
    rule = rule or Told()
    module = Validated(rule, names)
    adapter = LearnedOptimizerAdapter(monitor=monitor)
    data = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    fit(module, epochs=epochs, adapter=adapter, callbacks=callbacks, data=data, ckpt=ckpt, **settings)
    return rule.told


LOSSES = [(1.0, 0.333), (2.0, 0.667), (3.0, 1.0)]


@pytest.mark.parametrize(
    "names",
    [
        {"val_loss": 1.0},
        {"valid/loss": 1.0, "val_accuracy": 7.0},
        {"loss/validation": 1.0},
        {"val_loss": 1.0, "val_loss_of_parts": 9.0, "interval_loss": 5.0},
        {"val_loss": 1.0, "dev_loss": 9.0},
        {"valid_loss_0": 9.0, "valid_loss": 1.0, "valid_accuracy": 9.0},
        {"ptl/val_loss": 9.0, "valid_loss": 1.0},
        {"reconstruction_loss_validation": 9.0, "elbo_validation": 9.0, "validation_loss": 1.0},
    ],
)
def test_the_validation_loss_arrives_with_the_progress_of_the_run(names):
    assert told(names) == LOSSES


@pytest.mark.parametrize(
    "names",
    [
        {"val_accuracy": 1.0},
        {"interval_loss": 1.0},
        {"val/loss": 1.0, "dev/loss": 2.0},
        {"val_mask_loss": 1.0, "val_box_loss": 2.0},
    ],
)
def test_no_metric_is_guessed(names):
    assert told(names) == []


def test_the_metric_that_other_callbacks_monitor_comes_first(tmp_path):
    names = {"val_loss": 5.0, "val_error": 1.0, "val_accuracy": 3.0}
    stopping = EarlyStopping("val_error", patience=9)
    best = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max")
    assert told(names, [best, stopping]) == LOSSES
    assert told({"train_error": 1.0, "val_loss": 1.0}, [EarlyStopping("train_error", patience=9)]) == LOSSES


def test_the_user_may_name_it_or_switch_it_off(caplog):
    assert told({"val_loss": 5.0, "perplexity": 1.0}, monitor="perplexity") == LOSSES
    assert told({"val_loss": 1.0}, monitor=None) == []
    with pytest.warns(UserWarning, match=r"monitor='val_los'\): no such metric .* there are val_loss"):
        assert told({"val_loss": 1.0}, monitor="val_los") == []


def test_the_log_says_once_which_one_it_is(caplog):
    with caplog.at_level(logging.INFO):
        told({"val_loss": 1.0})
    lines = [record.getMessage() for record in caplog.records if "val_loss" in record.getMessage()]
    assert lines == ["LearnedOptimizerAdapter: the steps follow 'val_loss', the loss of each validation."]


def test_the_log_says_that_no_metric_is_clearly_the_loss(caplog):
    with caplog.at_level(logging.INFO):
        told({"val/loss": 1.0, "dev/loss": 2.0})
    assert sum("it is not clear which of dev/loss, val/loss is one; name it" in x for x in caplog.messages) == 1


def test_a_loss_that_is_not_finite_does_not_arrive():
    assert told({"val_loss": float("nan")}) == []


def test_it_comes_at_each_validation_within_an_epoch():
    assert [share for _, share in told({"val_loss": 1.0}, epochs=2, val_check_interval=3)] == [0.25, 0.5, 0.75, 1.0]


def test_stop_and_resume_is_no_stop(tmp_path):
    """The rise after the second epoch is remembered by the checkpoint, and shortens the steps of the third."""

    def run(save=None, ckpt=None, factor=1.0):
        module = Validated(ResidualRule(direction=False, controller=False, reads_validation=True), {"val_loss": factor})
        module.count = 2 if ckpt else 0
        data = {"train_dataloaders": loader(), "val_dataloaders": loader()}
        fit(module, epochs=3, callbacks=[save] if save else [], data=data, ckpt=ckpt)
        return torch.cat([x.detach().flatten() for x in module.parameters()])

    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    straight = run(save)
    assert torch.equal(run(ckpt=tmp_path / "epoch=1.ckpt"), straight)
    assert not torch.equal(run(factor=-1.0), straight)


def test_a_fit_ends_with_the_weights_of_the_lowest_loss(caplog, monkeypatch):
    """The loss rises after the first epoch and after the first return; each second rise sets the weights back."""
    caplog.set_level(logging.INFO)
    weights, freed, losses = [], [], [1.0, 2.0, 3.0, 1.5, 2.5]
    monkeypatch.setattr("lightning_lopt.callbacks.validation_loss.free_copies", freed.append)

    class Watched(Validated):
        def on_validation_epoch_end(self):
            self.log("val_loss", losses[len(weights)])
            weights.append(values(self))

    def values(module):
        """Weights and running statistics."""
        return torch.cat([x.detach().flatten() for x in module.state_dict().values() if x.is_floating_point()])

    rule = ResidualRule(direction=False, controller=False, reads_validation=True)
    module = Watched(rule, {"val_loss": 1.0})
    module.net.insert(1, nn.BatchNorm1d(8))
    module.configured = lambda module: LearnedOptimizer(module.parameters(), rule)
    fit(module, epochs=5, data={"train_dataloaders": loader(), "val_dataloaders": loader()}, num_sanity_val_steps=0)
    assert torch.equal(values(module), weights[0])
    assert not torch.equal(weights[-1], weights[0])
    assert caplog.text.count("continues from the weights of") == 1
    assert freed == [module] * 2  # gathered copies of sharded weights, which are older than the weights
