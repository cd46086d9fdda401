"""The swap: what of the replaced optimizer holds on, and that the module keeps no trace of it."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from small_fits import BATCHES, RULE, ManualModule, Module, fit, fit_of_pytorch_lightning, loader, small_module_of

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter, MetaTraining
from lightning_lopt.optim.rates import multiplier


def swap(**settings):
    return LearnedOptimizerAdapter(RULE, **settings)


def groups_of(module, *settings):
    """AdamW with a group for each layer."""
    layers = (module.net[0], module.net[2])
    groups = [{"params": layer.parameters(), **its} for layer, its in zip(layers, settings, strict=True)]
    return torch.optim.AdamW(groups, lr=1e-2)


def messages(record):
    return [str(warning.message) for warning in record if "replaces have no effect" in str(warning.message)]


def test_a_group_at_rate_0_is_frozen_and_ratios_hold():
    """The second layer moves a fifth as far in the first step as it does where both rates are equal."""

    def moved(first, second):
        module = Module(lambda module: groups_of(module, {"lr": first}, {"lr": second}))
        before = copy.deepcopy(module.net)
        fit(module, epochs=1, max_steps=1, adapter=swap())
        return [(layer.weight - old.weight).detach() for layer, old in zip(module.net[::2], before[::2], strict=True)]

    both = moved(0.5, 0.5)
    first, second = moved(0.5, 0.1)
    torch.testing.assert_close(first, both[0])
    torch.testing.assert_close(second, both[1] / 5)
    first, second = moved(0.0, 1e-4)
    assert not first.any()
    torch.testing.assert_close(second, both[1])


def test_a_module_whose_rates_are_all_zero_is_trained_and_told():
    """Who adds a rule wants training; a rate of 0 is what one writes who has no rate in mind."""

    def weights(configured):
        module = Module(configured)
        trainer = fit(module, epochs=1, adapter=swap(lr=0.5))
        return [param.detach() for param in module.parameters()], trainer.optimizers[0]

    with pytest.warns(UserWarning, match="lr=0 in all groups, which counts as no choice of a rate"):
        found, optimizer = weights(lambda module: torch.optim.AdamW(module.parameters(), lr=0.0))
    assert [multiplier(group) for group in optimizer.param_groups] == [0.5]
    expected, _ = weights(lambda module: torch.optim.AdamW(module.parameters(), lr=1e-3))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)


def test_rates_are_those_that_were_configured_where_the_scheduler_has_begun_a_warm_up():
    def configured(module):
        optimizer = groups_of(module, {"lr": 0.3}, {"lr": 0.1})
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 10))]

    with pytest.warns(UserWarning, match="LambdaLR, whose rate is computed but not used"):
        (optimizer,) = fit(Module(configured), adapter=swap(lr=0.5)).optimizers
    assert [multiplier(group) for group in optimizer.param_groups] == pytest.approx([0.5, 0.5 / 3])


def test_a_decay_that_differs_is_scaled_or_named_and_equal_ones_are_no_matter():
    def configured(module):
        return groups_of(module, {"weight_decay": 0.2}, {"weight_decay": 0.05})

    with pytest.warns(
        UserWarning, match=r"have no effect: weight_decay that differs by group \(0\.2, 0\.05\)"
    ) as record:
        fit(Module(configured), epochs=1, adapter=swap())
    assert len(messages(record)) == 1
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        (optimizer,) = fit(Module(configured), epochs=1, adapter=swap(weight_decay=0.1)).optimizers
        fit(Module(lambda module: groups_of(module, {}, {})), epochs=1, adapter=swap())
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.025])
    assert messages(record) == []


def test_keys_of_groups_are_kept():
    def configured(module):
        return groups_of(module, {"name": "body", "lr_scale": 0.5}, {"name": "top", "lr_scale": 1.0})

    (optimizer,) = fit(Module(configured), epochs=1, adapter=swap()).optimizers
    found = [(group["name"], group["lr_scale"], group["betas"]) for group in optimizer.param_groups]
    assert found == [("body", 0.5, (0.9, 0.999)), ("top", 1.0, (0.9, 0.999))]


class WarmUp(Module):
    """A warm-up by hand, in the unit of AdamW; 1 to 4 quarters of the rate."""

    def __init__(self, rate=1e-2, **_):
        super().__init__(lambda module: torch.optim.AdamW(module.parameters(), lr=rate))
        self.rate = rate

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        for group in optimizer.param_groups:
            group["lr"] = self.rate * min(self.trainer.global_step + 1, 4) / 4
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


def test_a_rate_that_the_module_writes_is_in_its_own_unit():
    """As a scheduler with the same factors does it to an optimizer of the module's own."""

    def scheduled(module):
        optimizer = LearnedOptimizer(module, RULE)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step + 1, 4) / 4)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    by_hand, direct = WarmUp(), Module(scheduled)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="lr=")
        fit(by_hand, adapter=swap())
    fit(direct)
    for x, y in zip(by_hand.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)


def test_averaging_with_a_rate_of_its_own_is_in_the_modules_unit():
    averaging = StochasticWeightAveraging(swa_lrs=5e-3, swa_epoch_start=1, annealing_epochs=1)
    (optimizer,) = fit(
        Module(lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2)),
        epochs=3,
        adapter=swap(),
        callbacks=[averaging],
    ).optimizers
    assert multiplier(optimizer.param_groups[0]) == pytest.approx(0.5)


class OwnScheduler(ManualModule):
    """Steps its scheduler, logs its rate and looks it up."""

    def __init__(self):
        def configured(module):
            optimizer = torch.optim.AdamW(module.parameters(), lr=1.0)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

        super().__init__(configured)
        self.rates = []

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.lr_schedulers().step()
        (rate,) = self.lr_schedulers().get_last_lr()
        assert self.trainer.lr_scheduler_configs[0].scheduler is self.lr_schedulers()
        self.log("rate", rate)
        self.rates.append(rate)


def test_a_module_may_step_its_scheduler_and_log_its_rate(tmp_path):
    module = OwnScheduler()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*before `optimizer.step.*")
        trainer = fit(
            module, epochs=1, adapter=swap(), callbacks=[LearningRateMonitor("step")], logger=CSVLogger(tmp_path)
        )
    assert module.rates == [0.5 ** (step + 1) for step in range(BATCHES)]
    assert multiplier(trainer.optimizers[0].param_groups[0]) == 1.0
    direct = ManualModule()
    fit(direct, epochs=1)
    for x, y in zip(module.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)


def test_an_optimizer_that_maximises_is_refused():
    with pytest.raises(ValueError, match="which minimises; return the negative of the loss"):
        fit(Module(lambda module: torch.optim.AdamW(module.parameters(), maximize=True)), adapter=swap())


class Snapshot(Callback):
    """Copies and pickles the module in the middle of the fit."""

    def on_train_epoch_end(self, trainer, pl_module):
        self.copy = copy.deepcopy(pl_module)
        torch.save(pl_module, io.BytesIO())
        pickle.dumps(pl_module)
        self.attributes = set(vars(pl_module))


class Plain(Module):
    """Without closures of ours, which cannot be pickled."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def test_a_copy_made_in_the_fit_trains_like_any_module():
    kept, module = Snapshot(), Plain()
    before = set(vars(module))
    fit(module, epochs=1, adapter=swap(), callbacks=[kept])
    assert {name for name in kept.attributes - before if "configure" in name or "lopt" in name} == set()
    with_copy, direct = kept.copy, copy.deepcopy(module)
    fit(with_copy, epochs=1, adapter=swap())
    fit(direct, epochs=1, adapter=swap())
    for x, y in zip(with_copy.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)
    trainer = fit(kept.copy, epochs=1, adapter=Callback())
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)


def test_the_trainer_keeps_no_trace_either():
    module, adapter = Plain(), swap()
    trainer = fit(module, epochs=1, adapter=adapter)
    assert "setup_optimizers" not in vars(trainer.strategy)
    module.training_step = lambda *_: 1 / 0
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, loader())
    assert "setup_optimizers" not in vars(trainer.strategy)


def test_two_adapters_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"2 adapters .*LearnedOptimizerAdapter and OnlineMetaTraining; keep one"):
        fit(Plain(), adapter=swap(), callbacks=[MetaTraining(RULE)])


@pytest.mark.parametrize("kind", [LearnedOptimizerAdapter, MetaTraining])
def test_a_class_instead_of_an_instance_is_named(kind):
    with pytest.raises(TypeError, match=rf"holds the class {kind.__name__}; write {kind.__name__}\(\)"):
        fit(Plain(), adapter=kind)


class Shim(ManualModule):
    """Trains with an optimizer that ``configure_optimizers`` does not return."""

    def __init__(self):
        super().__init__(lambda module: torch.optim.AdamW(module.parameters()))
        self.real = [torch.optim.SGD(self.parameters(), lr=0.1)]

    def training_step(self, batch, batch_idx):
        loss = Module.training_step(self, batch, batch_idx)
        self.manual_backward(loss)
        self.real[0].step()
        self.real[0].zero_grad()


def test_another_optimizer_that_trains_is_pointed_out():
    with pytest.warns(UserWarning, match="another optimizer than the one that configure_optimizers returns") as record:
        fit(Shim(), adapter=swap())
    assert len([w for w in record if "another optimizer" in str(w.message)]) == 1

    class Idle(Shim):
        def training_step(self, batch, batch_idx):
            self.manual_backward(Module.training_step(self, batch, batch_idx))

    with pytest.warns(UserWarning, match=f"made no step in {2 * BATCHES} batches"):
        fit(Idle(), adapter=swap())


def test_module_and_trainer_of_pytorch_lightning():
    """The same numbers as with ``lightning.pytorch``; checkpoints, schedulers and groups included."""
    pl = pytest.importorskip("pytorch_lightning")
    module, direct = small_module_of(pl)(), Module()
    trainer = fit_of_pytorch_lightning(module=module)
    assert trainer.optimizers[0].total_steps == trainer.optimizers[0].steps_made == 2 * BATCHES
    fit(direct)
    for x, y in zip(module.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)

    class Stub:
        strategy = pl.strategies.FSDPStrategy()

    with pytest.raises(ValueError, match="'fsdp' flattens parameters"):
        LearnedOptimizerAdapter(RULE).setup(Stub(), module, "fit")


def test_the_guard_of_a_swap():
    """A rule whose steps are a hundred times too long is left for AdamW."""
    module = Module(lambda module: torch.optim.AdamW(module.parameters()))
    adapter = LearnedOptimizerAdapter(AdamRule(1.0), guard=True)
    with pytest.warns(UserWarning, match="LossGuard: training switched at step"):
        trainer = fit(module, epochs=10, adapter=adapter)
    assert trainer.optimizers[0].guard_state.startswith("switched at step")
    assert all(param.abs().max() < 10 for param in module.parameters())
