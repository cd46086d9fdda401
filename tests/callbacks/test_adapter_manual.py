"""Manual optimization with several optimizers: each rule sees the losses of its own network."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from small_fits import BATCHES, RULE, Recorder, fit
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter


class Two(L.LightningModule):
    """Two networks, of which the second makes a step every other batch; losses go to ``step`` or to the adapter."""

    def __init__(self, configured, pass_loss=True):
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
        self.automatic_optimization = False
        self.configured = configured
        self.pass_loss = pass_loss
        self.losses = [[], []]

    def training_step(self, batch, batch_idx):
        for index, optimizer in enumerate(self.optimizers()):
            if index == 1 and batch_idx % 2:
                continue
            loss = (index + 1) * nn.functional.cross_entropy(self.nets[index](batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step(**({"loss": loss} if self.pass_loss else {}))
            self.losses[index].append(float(loss.detach()))

    def configure_optimizers(self):
        return self.configured(self)


def two_rules(module):
    module.rules = [Recorder(), Recorder()]
    return [LearnedOptimizer(net, rule) for net, rule in zip(module.nets, module.rules, strict=True)]


def adamw(module):
    return [torch.optim.AdamW(net.parameters()) for net in module.nets]


@pytest.mark.parametrize("pass_loss", [True, False], ids=["passed", "delivered"])
def test_each_rule_sees_its_own_losses(pass_loss):
    module = Two(two_rules, pass_loss)
    trainer = fit(module, adapter=LearnedOptimizerAdapter(total_steps=2 * BATCHES))
    for rule, losses in zip(module.rules, module.losses, strict=True):
        assert rule.seen == pytest.approx(losses)
    assert [int(optimizer.param_groups[0]["step"]) for optimizer in trainer.optimizers] == [12, 6]


def test_a_loss_reaches_the_rule_through_a_gradient_scaler():
    module = Two(two_rules)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(module, adapter=LearnedOptimizerAdapter(total_steps=12), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    for rule, losses in zip(module.rules, module.losses, strict=True):
        assert rule.seen == pytest.approx(losses)


def test_several_optimizers_are_swapped_and_resume(tmp_path):
    def adapter():
        return LearnedOptimizerAdapter(RULE, total_steps=12)

    straight, resumed = Two(adamw), Two(adamw)
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    trainer = fit(straight, adapter=adapter(), callbacks=[save])
    assert [type(optimizer) for optimizer in trainer.optimizers] == [LearnedOptimizer, LearnedOptimizer]
    assert [group["names"] for optimizer in trainer.optimizers for group in optimizer.param_groups] == [
        ["nets.0.weight", "nets.0.bias"],
        ["nets.1.weight", "nets.1.bias"],
    ]
    fit(resumed, adapter=adapter(), ckpt=tmp_path / "epoch=0.ckpt")
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


def test_without_manual_backward_the_loss_has_to_be_passed():
    class Raw(Two):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()[0]
            optimizer.zero_grad()
            self.nets[0](batch[0]).sum().backward()
            optimizer.step()

    with pytest.raises(ValueError, match=r"reads the loss, but none arrived; call step\(loss\), step\(lambda: loss\)"):
        fit(Raw(two_rules), adapter=LearnedOptimizerAdapter(total_steps=12))
