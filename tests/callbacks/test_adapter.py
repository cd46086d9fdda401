import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from small_fits import BATCHES, RULE, ManualModule, Module, Recorder, fit, loader

from lightning_lopt import AdamRule, LearnedOptimizer, LearnedOptimizerAdapter
from lightning_lopt.optim.rates import multiplier


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


SETTINGS = {
    "32-true": dict,
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "16-mixed": scaled,
    "accumulation": lambda: {"accumulate_grad_batches": 4},
    "clipping": lambda: {"gradient_clip_val": 0.1},
    "16-mixed-accumulation": lambda: {**scaled(), "accumulate_grad_batches": 4},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_rule_sees_the_mean_loss_of_each_window(settings):
    rule = Recorder()
    module = Module(lambda module: LearnedOptimizer(module, rule))
    trainer = fit(module, **settings())
    window = trainer.accumulate_grad_batches
    expected = []
    for epoch in range(2):
        losses = module.losses[epoch * BATCHES : (epoch + 1) * BATCHES]
        expected += [sum(losses[i : i + window]) / len(losses[i : i + window]) for i in range(0, BATCHES, window)]
    assert rule.seen == pytest.approx(expected, rel=1e-2 if "bf16-true" in str(settings()) else 1e-5)
    assert trainer.optimizers[0].total_steps == len(expected)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [Module, ManualModule])
def test_stop_and_resume_is_no_stop(tmp_path, settings, kind):
    if kind is ManualModule and {"gradient_clip_val", "accumulate_grad_batches"} & set(settings()):
        pytest.skip("Lightning refuses accumulation and clipping in manual optimization")
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    straight = kind()
    fit(straight, epochs=3, callbacks=[save], **settings())
    resumed = kind()
    fit(resumed, epochs=3, ckpt=tmp_path / "epoch=0.ckpt", **settings())
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def step_lr(module):
    optimizer = adamw(module)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


def lists(module):
    optimizer = adamw(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize("configured", [adamw, step_lr, lists, lambda module: None, lambda module: [adamw(module)]])
def test_swap_replaces_any_return_value_and_restores_the_module(configured):
    module = Module(configured)
    trainer = fit(module, adapter=LearnedOptimizerAdapter(RULE))
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, LearnedOptimizer)
    assert optimizer.total_steps == 2 * BATCHES
    assert int(optimizer.param_groups[0]["step"]) == 2 * BATCHES
    assert multiplier(optimizer.param_groups[0]) == 1.0
    assert "head" in optimizer.role_table()
    assert "configure_optimizers" not in vars(module)
    direct = Module()
    fit(direct)
    for x, y in zip(module.parameters(), direct.parameters(), strict=True):
        assert torch.equal(x, y)


def test_swap_is_undone_after_an_exception():
    module = Module(adamw)
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(module, adapter=LearnedOptimizerAdapter(RULE))
    assert "configure_optimizers" not in vars(module)


def test_a_fit_that_broke_off_leaves_no_loss_behind():
    adapter, rule = LearnedOptimizerAdapter(), Recorder()
    module = Module(lambda module: LearnedOptimizer(module, rule))
    module.on_after_backward = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(module, adapter=adapter, accumulate_grad_batches=2)
    del module.on_after_backward
    module.losses.clear()
    fit(module, epochs=1, adapter=adapter)
    assert rule.seen == pytest.approx(module.losses)


def test_the_optimizer_steps_on_after_the_fit_without_the_trainer():
    trainer = fit(Module(), epochs=1)
    (optimizer,) = trainer.optimizers
    assert optimizer.signals.reduce is None
    for param in trainer.lightning_module.parameters():
        param.grad = torch.ones_like(param)
    with pytest.warns(UserWarning, match="past its total_steps"):
        optimizer.step(loss=1.0)
    assert int(optimizer.param_groups[0]["step"]) == BATCHES + 1


def test_second_fit_plans_for_the_steps_to_come():
    module = Module()
    trainer = fit(module)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader())
    assert trainer.optimizers[0].total_steps == 2 * BATCHES


def test_no_learned_optimizer_and_no_horizon_say_what_to_do():
    with pytest.raises(ValueError, match="found no LearnedOptimizer"):
        fit(Module(adamw))
    with pytest.raises(ValueError, match="total_steps"):
        fit(Module(), epochs=-1, max_time="00:00:00:05")
    fit(Module(lambda module: LearnedOptimizer(module, AdamRule())), epochs=1)


def test_learning_rate_scheduler_multiplies_the_step():
    def configured(module):
        optimizer = LearnedOptimizer(module, RULE)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0)]

    module = Module(configured)
    before = [param.detach().clone() for param in module.parameters()]
    fit(module)
    assert all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))
