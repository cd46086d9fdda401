"""The loss that a rule sees in manual optimization is that of what was backpropagated since its last step."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from small_fits import BATCHES, Module, Recorder, fit
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter


def recording(module):
    module.rule = Recorder()
    return LearnedOptimizer(module, module.rule)


def scaled():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


class Accumulating(Module):
    """Lightning's recipe: loss / N, a step every N batches."""

    N = 3

    def __init__(self):
        super().__init__(recording)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx) / self.N)
        if (batch_idx + 1) % self.N == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize("settings", [{}, scaled()], ids=["32-true", "16-mixed"])
def test_accumulation_by_hand_is_what_the_trainer_accumulates(settings):
    manual = Accumulating()
    by_hand = fit(manual, **settings)
    automatic = Module(recording)
    by_trainer = fit(automatic, accumulate_grad_batches=Accumulating.N, **(scaled() if settings else {}))
    assert manual.rule.seen == pytest.approx(automatic.rule.seen, rel=1e-5)
    assert by_hand.optimizers[0].total_steps == by_trainer.optimizers[0].total_steps == 2 * BATCHES / Accumulating.N
    for x, y in zip(manual.parameters(), automatic.parameters(), strict=True):
        torch.testing.assert_close(x, y)


class Parts(Module):
    """Several backward passes a step, with a loss that is thrown away before each."""

    def __init__(self):
        super().__init__(recording)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(100 * super().training_step(batch, batch_idx))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for weight in (1.0, 0.5):
            self.manual_backward(weight * super().training_step(batch, batch_idx))
        optimizer.step()


def test_losses_of_one_step_add_up_and_those_without_gradients_do_not_count():
    module = Parts()
    fit(module, epochs=1)
    assert module.rule.seen == pytest.approx([1.5 * loss for loss in module.losses[::3]], rel=1e-4)


class Adversaries(Module):
    """Generator and discriminator; ``order`` is one of the patterns in which people train them."""

    def __init__(self, order):
        super().__init__()
        self.generator, self.critic = nn.Linear(5, 5), nn.Linear(5, 1)
        self.automatic_optimization = False
        self.order = order
        self.rules = [Recorder(), Recorder()]
        self.expected = [[], []]

    def configure_optimizers(self):
        nets = (self.generator, self.critic)
        return [LearnedOptimizer(net, rule) for net, rule in zip(nets, self.rules, strict=True)]

    def critic_loss(self, x):
        return (self.critic(self.generator(x).detach()) - self.critic(x)).mean() + 3

    def generator_loss(self, x):
        return -self.critic(self.generator(x)).mean() + 1

    def training_step(self, batch, batch_idx):
        getattr(self, self.order)(batch[0], batch_idx, *self.optimizers())

    def step(self, which, optimizer, loss):
        self.expected[which].append(float(loss.detach()))
        optimizer.step()

    def one_after_the_other(self, x, batch_idx, generator, critic):
        for which, optimizer, loss_of in ((1, critic, self.critic_loss), (0, generator, self.generator_loss)):
            optimizer.zero_grad()
            loss = loss_of(x)
            self.manual_backward(loss)
            self.step(which, optimizer, loss)

    def toggled(self, x, batch_idx, generator, critic):
        for which, optimizer, loss_of in ((1, critic, self.critic_loss), (0, generator, self.generator_loss)):
            self.toggle_optimizer(optimizer)
            loss = loss_of(x)
            self.manual_backward(loss)
            self.step(which, optimizer, loss)
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    def both_backward_first(self, x, batch_idx, generator, critic):
        generator.zero_grad()
        critic.zero_grad()
        critic_loss, generator_loss = self.critic_loss(x), self.generator_loss(x)
        self.manual_backward(critic_loss)
        self.manual_backward(generator_loss)  # which reaches the critic too
        self.step(1, critic, critic_loss + generator_loss)
        self.step(0, generator, generator_loss)

    def critic_five_times(self, x, batch_idx, generator, critic):
        critic.zero_grad()
        loss = self.critic_loss(x)
        self.manual_backward(loss)
        self.step(1, critic, loss)
        if batch_idx % 5 == 4:
            generator.zero_grad()
            loss = self.generator_loss(x)
            self.manual_backward(loss)
            self.step(0, generator, loss)


@pytest.mark.parametrize("order", ["one_after_the_other", "toggled", "both_backward_first", "critic_five_times"])
def test_each_adversary_gets_the_losses_that_reached_it(order):
    module = Adversaries(order)
    fit(module, adapter=LearnedOptimizerAdapter(total_steps=12))
    assert [len(seen) for seen in module.expected] == [2 if order == "critic_five_times" else 12, 12]
    for rule, losses in zip(module.rules, module.expected, strict=True):
        assert rule.seen == pytest.approx(losses, abs=1e-5)


def test_a_loss_that_reaches_another_kind_of_optimizer_alone_is_not_told():
    class Mixed(Adversaries):
        def configure_optimizers(self):
            generator, _ = super().configure_optimizers()
            return [generator, torch.optim.AdamW(self.critic.parameters())]

    module = Mixed("critic_five_times")
    fit(module, adapter=LearnedOptimizerAdapter(total_steps=2))
    assert module.rules[0].seen == pytest.approx(module.expected[0], abs=1e-5)
    assert module.rules[1].seen == []


def test_losses_whose_gradients_are_dropped_do_not_count_in_automatic_optimization():
    class EveryOther(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()  # Lightning sets its gradients to zero before the next one

    module = EveryOther(recording)
    fit(module, epochs=1)
    assert module.rule.seen == pytest.approx(module.losses[1::2])
