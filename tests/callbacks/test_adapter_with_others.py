"""Beside Lightning's own callbacks, and on modules whose ``configure_optimizers`` is not their class's."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from small_fits import BATCHES, RULE, Module, fit, loader
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter
from lightning_lopt.optim.rates import multiplier


def adamw(module):
    return torch.optim.AdamW([param for param in module.parameters() if param.requires_grad], lr=1e-3)


class Pretrained(Module):
    """A backbone with an embedding, which is frozen at first."""

    def __init__(self, configured=adamw):
        super().__init__(configured)
        self.backbone = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5))
        self.table = nn.Embedding(3, 5)

    def training_step(self, batch, batch_idx):
        hidden = self.backbone(batch[0]) + self.table(batch[1])
        return super().training_step((hidden, batch[1]), batch_idx)


class Unfreeze(BackboneFinetuning):
    """Unfreezes the table with the backbone."""

    def freeze_before_training(self, pl_module):
        self.freeze([pl_module.backbone, pl_module.table])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == self.unfreeze_backbone_at_epoch:
            self.unfreeze_and_add_param_group(
                [pl_module.backbone, pl_module.table], optimizer, lr=optimizer.param_groups[0]["lr"] / 2
            )
        elif epoch > self.unfreeze_backbone_at_epoch:  # Lightning freezes again when it resumes
            self.make_trainable([pl_module.backbone, pl_module.table])


def roles(optimizer):
    return {line.split()[0]: line.split()[2] for line in optimizer.role_table().splitlines()[1:]}


@pytest.mark.parametrize("configured", [adamw, lambda module: LearnedOptimizer(module, RULE)], ids=["swap", "own"])
def test_backbone_finetuning_and_resume(tmp_path, configured):
    """What is unfrozen later comes with its name and its role, and with its state after a resume."""
    rule = RULE if configured is adamw else None
    straight = Pretrained(configured)
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    first = fit(straight, epochs=4, adapter=Unfreeze(1), callbacks=[LearnedOptimizerAdapter(rule), save])
    (optimizer,) = first.optimizers
    found = roles(optimizer)
    assert found["table.weight"] == "embedding"
    assert found["net.2.weight"] == "matrix"  # the last layer that was registered is the backbone's
    assert {name for name, role in found.items() if role == "vector"} >= {"backbone.1.weight", "backbone.2.bias"}
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 7]
    assert [multiplier(group) for group in optimizer.param_groups] == [1.0, 0.5]
    for epoch in (0, 2):
        resumed = Pretrained(configured)
        again = fit(
            resumed,
            epochs=4,
            adapter=Unfreeze(1),
            callbacks=[LearnedOptimizerAdapter(rule)],
            ckpt=tmp_path / f"epoch={epoch}.ckpt",
        )
        assert roles(again.optimizers[0]) == found
        for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(x, y)


def test_learning_rate_monitor(tmp_path):
    def configured(module):
        optimizer = LearnedOptimizer(module, RULE)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    monitor = LearningRateMonitor(logging_interval="epoch")
    trainer = fit(Module(configured), callbacks=[monitor], logger=CSVLogger(tmp_path))
    assert monitor.lrs == {"lr-LearnedOptimizer": [1.0, 0.5]}
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("adapter_first", [True, False], ids=["after", "before"])
def test_weight_averaging(tmp_path, adapter_first):
    """The averages are of the weights that a fit without averaging goes through; in either order, with resume."""
    lightning_2_6 = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    plain = Module()
    fit(plain, epochs=2)

    def averaged(**settings):
        adapter, averaging = LearnedOptimizerAdapter(RULE), lightning_2_6.EMAWeightAveraging(decay=0.5)
        first, second = (adapter, averaging) if adapter_first else (averaging, adapter)
        module = Module(adamw)
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
        fit(module, epochs=2, adapter=first, callbacks=[second, keep], **settings)
        return list(module.parameters())

    straight = averaged()
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    for x, y in zip(plain.parameters(), saved["current_model_state"].values(), strict=True):
        assert torch.equal(x, y)
    assert not all(torch.equal(x, y) for x, y in zip(straight, plain.parameters(), strict=True))
    for x, y in zip(straight, averaged(ckpt=tmp_path / "epoch=0.ckpt"), strict=True):
        assert torch.equal(x, y)


def test_stochastic_weight_averaging():
    fit(Module(), epochs=3, callbacks=[StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1)])


def test_a_configure_optimizers_of_the_module_itself_is_put_back():
    """As LightningCLI sets it: on the instance, not on the class."""
    module = Module()
    own = module.configure_optimizers = lambda: adamw(module)
    for _ in range(2):
        trainer = fit(module, epochs=1, adapter=LearnedOptimizerAdapter(RULE))
        assert isinstance(trainer.optimizers[0], LearnedOptimizer)
        assert module.configure_optimizers is own
    module.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(module, epochs=1, adapter=LearnedOptimizerAdapter(RULE))
    assert module.configure_optimizers is own


def test_other_stages_leave_the_module_alone():
    module = Module()
    own = module.configure_optimizers = lambda: adamw(module)
    module.test_step = lambda batch, batch_idx: None
    trainer = L.Trainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, callbacks=[LearnedOptimizerAdapter(RULE)]
    )
    trainer.test(module, loader(), verbose=False)
    assert module.configure_optimizers is own
    module.test_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.test(module, loader(), verbose=False)
    assert module.configure_optimizers is own


def test_groups_of_the_replaced_optimizer_keep_their_roles():
    stray = nn.Parameter(torch.ones(2, 2))

    def configured(module):
        groups = [
            {"params": [module.net[0].weight, stray], "role": "embedding"},
            {"params": module.net[2].parameters()},
        ]
        return torch.optim.AdamW(groups)

    trainer = fit(Module(configured), epochs=1, adapter=LearnedOptimizerAdapter(RULE, lr=0.5, weight_decay=0.1))
    (optimizer,) = trainer.optimizers
    assert roles(optimizer) == {
        "net.0.weight": "embedding",
        "group0.1": "embedding",
        "net.2.weight": "head",
        "net.2.bias": "vector",
    }
    assert {(multiplier(group), group["weight_decay"]) for group in optimizer.param_groups} == {(0.5, 0.1)}


def test_a_training_step_without_a_loss_makes_no_step():
    class Sometimes(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    trainer = fit(Sometimes(), epochs=1)
    assert trainer.global_step == BATCHES
    assert int(trainer.optimizers[0].param_groups[0]["step"]) == BATCHES // 2


def test_a_strategy_that_flattens_parameters_is_refused():
    class Stub:
        strategy = FSDPStrategy()

    for rule in (None, RULE):
        with pytest.raises(ValueError, match=r"'fsdp' flattens parameters.*ModelParallelStrategy \(FSDP2\) or 'ddp'"):
            LearnedOptimizerAdapter(rule).setup(Stub(), Module(), "fit")
