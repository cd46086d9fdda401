"""``transformers.Trainer`` with the mixin: loss, horizon and learning rate of each step, and resuming."""

import pytest
import torch
from recipes import STEPS, assert_equal, examples, model, page_blocks, plain
from torch import nn

from lightning_lopt import LearnedOptimizer, LearnedTrainerMixin, ScheduleFreeAdamRule

REASON = "needs lightning_lopt[interop]: {} is not installed"
pytest.importorskip("accelerate", reason=REASON.format("accelerate"))
transformers = pytest.importorskip("transformers", reason=REASON.format("transformers"))


class Model(nn.Module):
    """Returns a loss as models of the library do, and remembers the batches it was trained on."""

    def __init__(self):
        super().__init__()
        self.net = model()
        self.batches = []

    def forward(self, x, labels):
        if self.training:
            self.batches.append((x, labels))
        predicted = self.net(x)
        return {"loss": nn.functional.mse_loss(predicted, labels), "logits": predicted}


class LearnedTrainer(LearnedTrainerMixin, transformers.Trainer):
    """Remembers the loss and the learning rate of each step."""

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        self.seen, at = [], optimizer.rule.at

        def see(shared, context):
            self.seen.append((float(context.loss), optimizer.param_groups[0]["lr"]))
            return at(shared, context)

        optimizer.rule.at = see
        return optimizer


@pytest.fixture
def trainer(tmp_path):
    """A function that makes a Trainer of 24 examples in batches of 4."""

    def make(kind=LearnedTrainer, net=None, optimizers=(None, None), **settings):
        settings = {"num_train_epochs": 1, "max_grad_norm": 0.0, "save_strategy": "no", **settings}
        arguments = transformers.TrainingArguments(
            str(tmp_path / "output"),
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
        rows = [{"x": x, "labels": y} for x, y in examples(4 * STEPS)]
        return kind(net or Model(), arguments, train_dataset=rows, eval_dataset=rows[:4], optimizers=optimizers)

    return make


def learned(made):
    return made.optimizer.optimizer


@pytest.mark.parametrize("accumulated", [1, 2, 3])
def test_it_equals_a_plain_loop(trainer, accumulated):
    made = trainer(gradient_accumulation_steps=accumulated)
    made.train()
    expected, losses = plain(model(), made.model.batches, accumulated)
    assert_equal(made.model.net, expected)
    assert [loss for loss, _ in made.seen] == pytest.approx(losses)
    assert [rate for _, rate in made.seen] == [1.0] * len(losses)
    assert learned(made).total_steps == learned(made).steps_made == STEPS // accumulated


def test_a_short_window_has_the_mean_of_its_batches(trainer):
    """The Trainer divides it by the number of batches that there are, here 4 and 2."""
    made = trainer(gradient_accumulation_steps=4)
    made.train()
    net, losses = model(), []
    optimizer = LearnedOptimizer(net, total_steps=2)
    for window in (made.model.batches[:4], made.model.batches[4:]):
        loss = sum(nn.functional.mse_loss(net(x), y) for x, y in window) / len(window)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss)
        losses.append(float(loss.detach()))
    assert [loss for loss, _ in made.seen] == pytest.approx(losses)
    assert_equal(made.model.net, net)


def test_what_is_passed_is_used(trainer):
    net = Model()
    optimizer = LearnedOptimizer(net, lr=0.5, total_steps=50)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    made = trainer(net=net, optimizers=(optimizer, scheduler))
    made.train()
    assert [rate for _, rate in made.seen] == pytest.approx([0.5 * 0.9**step for step in range(STEPS)])
    assert optimizer.total_steps == 50
    assert learned(made) is optimizer


@pytest.mark.parametrize(("given", "epochs"), [({}, 3.0), ({"total_steps": 50}, 3.0), ({"epochs": 7}, 7.0)])
def test_the_epochs_are_those_of_the_trainer_unless_they_are_given(trainer, given, epochs):
    net = Model()
    optimizer = LearnedOptimizer(net, **given)
    trainer(net=net, optimizers=(optimizer, None), num_train_epochs=3).train()
    assert optimizer.epochs == epochs


def test_resuming_is_no_stop(trainer, tmp_path):
    straight = trainer(save_strategy="steps", save_steps=2)
    straight.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert [loss for loss, _ in resumed.seen] == [loss for loss, _ in straight.seen][2:]
    for value, expected in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_another_length_is_taken_over_on_resume(trainer, tmp_path):
    trainer(save_strategy="steps", save_steps=2).train()
    longer = trainer(num_train_epochs=2)
    longer.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert learned(longer).total_steps == learned(longer).steps_made == 2 * STEPS


class Averaging(LearnedTrainer):
    rule = ScheduleFreeAdamRule()

    def _save_checkpoint(self, *args, **kwargs):
        self.was_in_eval = learned(self).is_in_eval
        super()._save_checkpoint(*args, **kwargs)


def test_evaluation_weights_are_in_the_model_when_it_is_measured_and_at_the_end(trainer):
    quiet, made = (trainer(Averaging, **given) for given in ({}, {"eval_strategy": "steps", "eval_steps": 2}))
    for each in (quiet, made):
        each.train()
    for value, expected in zip(made.model.parameters(), quiet.model.parameters(), strict=True):
        assert torch.equal(value, expected)  # to evaluate in between changes nothing
    optimizer = learned(made)
    assert optimizer.is_in_eval
    averages = [param.detach().clone() for param in made.model.parameters()]
    optimizer.train()
    assert any(not torch.equal(param, value) for param, value in zip(made.model.parameters(), averages, strict=True))
    made.evaluate()
    assert all(torch.equal(param, value) for param, value in zip(made.model.parameters(), averages, strict=True))


def test_checkpoints_hold_the_trained_weights(trainer, tmp_path):
    every = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    straight = trainer(Averaging, **every)
    straight.train()
    assert straight.was_in_eval is False
    resumed = trainer(Averaging)
    resumed.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    for value, expected in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_decay_of_the_arguments_is_named(trainer):
    with pytest.warns(UserWarning, match=r"weight_decay=0\.1\) is left out"):
        trainer(weight_decay=0.1).train()


def test_another_optimizer_is_left_alone(trainer):
    class Plain(LearnedTrainerMixin, transformers.Trainer):
        pass

    net = Model()
    made = trainer(Plain, net=net, optimizers=(torch.optim.SGD(net.parameters(), lr=0.1), None))
    made.train()
    assert made.lr_scheduler.get_last_lr() == [0.0]  # the Trainer's own schedule has ended


def test_the_recipe(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"model": Model(), "data": [{"x": x, "labels": y} for x, y in examples(32)]}
    before = [value.clone() for value in names["model"].parameters()]
    exec(compile(page_blocks()[2], "other-loops.md", "exec"), names)
    assert learned(names["trainer"]).steps_made == names["trainer"].state.max_steps == 12
    assert not any(torch.equal(x, y) for x, y in zip(before, names["model"].parameters(), strict=True))
