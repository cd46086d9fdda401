"""A rule that answers for an average of its iterates: where the model is in validation, in checkpoints, at the end."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_fits import BATCHES, RULE, Module, StatefulLoader, fit, loader

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter, ScheduleFreeAdamRule

AVERAGING = ScheduleFreeAdamRule(lr=0.1, warmup=0.0)


class Validated(Module):
    """Keeps the parameters that each validation saw, and those after each training batch."""

    def __init__(self):
        super().__init__(lambda module: LearnedOptimizer(module, AVERAGING))
        self.validated, self.trained = [], []

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.validated.append(copy.deepcopy(self.net.state_dict()))

    def val_dataloader(self):
        return loader()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trained.append(copy.deepcopy(self.net.state_dict()))


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def average(optimizer, module):
    """x from y and z, as the paper has it."""
    beta = AVERAGING.betas[0]
    return {
        name: (param - (1 - beta) * optimizer.state[param]["z"]) / beta for name, param in module.net.named_parameters()
    }


def gradients(module, seed=0):
    draws = torch.Generator().manual_seed(seed)
    for param in module.parameters():
        param.grad = torch.randn(param.shape, generator=draws).to(param.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_there_and_back_bit_for_bit(dtype):
    module = Module().to(dtype)
    optimizer = LearnedOptimizer(module, AVERAGING)
    for seed in range(3):
        gradients(module, seed)
        optimizer.step()
    at_y, at_x = copy.deepcopy(module.net.state_dict()), average(optimizer, module)
    for _ in range(2):  # a second call changes nothing
        optimizer.eval()
        tolerance = {} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(dict(module.net.state_dict()), at_x, **tolerance, check_dtype=False)
    assert not same(module.net.state_dict(), at_y)
    with pytest.raises(RuntimeError, match=r"train\(\)"):
        optimizer.step()
    copied_module, copied = copy.deepcopy((module, optimizer))
    for one, its in ((optimizer, module), (copied, copied_module)):
        for _ in range(2):
            one.train()
            assert same(its.net.state_dict(), at_y)


def test_rules_measured_where_they_train_pay_nothing():
    module = Module()
    optimizer = LearnedOptimizer(module, RULE, total_steps=3)
    versions = [param._version for param in module.parameters()]
    optimizer.eval()
    assert not optimizer.is_in_eval
    assert optimizer.evaluation_params() == {}
    optimizer.train()
    assert [param._version for param in module.parameters()] == versions


def test_validation_and_the_end_of_the_fit_see_the_average():
    module = Validated()
    start = copy.deepcopy(module.net.state_dict())
    trainer = fit(module, epochs=2)
    plain = Module(module.configured)
    fit(plain, adapter=LearnedOptimizerAdapter(), epochs=2)
    assert module.losses == plain.losses  # validation leaves no trace in training
    sanity, first, second = module.validated
    assert same(sanity, start)
    assert not same(first, module.trained[BATCHES - 1])
    assert same(second, module.net.state_dict())  # no step between the last validation and the end
    (optimizer,) = trainer.optimizers
    optimizer.train()
    assert same(module.net.state_dict(), module.trained[-1])
    torch.testing.assert_close(dict(second), average(optimizer, module))


def test_checkpoints_hold_the_average_and_resume_without_a_trace(tmp_path):
    straight = Validated()
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=4, filename="{step}")
    trainer = fit(straight, callbacks=[save], data=StatefulLoader())
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert not same(saved["state_dict"], {f"net.{key}": value for key, value in straight.trained[3].items()})
    resumed = Validated()
    fit(resumed, data=StatefulLoader(), ckpt=tmp_path / "step=4.ckpt")
    assert resumed.losses == straight.losses[4:]
    assert same(resumed.net.state_dict(), straight.net.state_dict())
    assert all(same(x, y) for x, y in zip(resumed.trained, straight.trained[4:], strict=True))
    trainer.save_checkpoint(tmp_path / "end.ckpt")  # the model is at the average now
    end = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert same(end["state_dict"], straight.state_dict())
    longer, further = Validated(), Validated()
    fit(longer, data=StatefulLoader(), epochs=3)
    fit(further, data=StatefulLoader(), epochs=3, ckpt=tmp_path / "end.ckpt")
    assert same(further.net.state_dict(), longer.net.state_dict())


class InTheMiddle(Callback):
    """Saves while the model is at the average, in the middle of validation."""

    def __init__(self, path):
        self.path = path

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_from_the_middle_of_validation_holds_both(tmp_path):
    module = Validated()
    fit(module, epochs=1, callbacks=[InTheMiddle(tmp_path / "middle.ckpt")])
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert same(saved["state_dict"], {f"net.{key}": value for key, value in module.validated[-1].items()})
    assert same(
        saved["lightning_lopt_trained_parameters"],
        {f"net.{key}": value for key, value in module.trained[-1].items()},
    )


class Tied(Module):
    """The first layer again, under another name."""

    def __init__(self, configured=None):
        super().__init__(configured)
        self.twin = self.net[0]


def test_shared_parameters_are_the_average_under_each_name(tmp_path):
    module = Tied(lambda module: LearnedOptimizer(module, AVERAGING))
    save = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="tied")
    fit(module, epochs=1, callbacks=[save])
    saved = torch.load(tmp_path / "tied.ckpt", weights_only=True)
    weights, trained = saved["state_dict"], saved["lightning_lopt_trained_parameters"]
    assert torch.equal(weights["twin.weight"], weights["net.0.weight"])
    assert not torch.equal(weights["twin.weight"], trained["net.0.weight"])
