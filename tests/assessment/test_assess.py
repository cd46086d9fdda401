"""The verdict agrees with what is known of a rule, within the budget, and nothing of the user's changes."""

import copy
import html
import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from assessed import STEPS, Data, Model, loader
from torch import nn

from lightning_lopt import AdamRule, SGDRule, assess, load_rule
from lightning_lopt.assessment.budget import budget_seconds
from lightning_lopt.assessment.pilot_task import MEASURED, PilotTask
from lightning_lopt.seeding import generator
from lightning_lopt.tasks.lightning_batches import StackedBatches
from lightning_lopt.tasks.loader_reading import readers
from lightning_lopt.tasks.module_with_data import FIRST

WINS, LOSES, DIVERGES = SGDRule(0.05), AdamRule(1e-6), SGDRule(10.0)
ENOUGH = 120.0  # seconds: pilots reach the planned horizon, and it takes two


@pytest.mark.parametrize(
    ("rule", "verdict", "reason"),
    [
        (WINS, "use it", "that of an AdamW with a swept"),
        (LOSES, "don't", "that of an AdamW with a swept"),
        (DIVERGES, "don't", "diverged"),
    ],
    ids=["wins", "loses", "diverges"],
)
def test_verdict(rule, verdict, reason):
    found = assess(Model, Data(), rule, total_steps=STEPS, budget=ENOUGH)
    assert found.verdict == verdict, str(found)
    assert reason in found.paragraph
    assert found.numbers["pilots"][-1]["horizon"] == STEPS
    assert {pilot["size"] for pilot in found.numbers["other_batches"]} == {8, 32}
    assert str(found).splitlines()[0].lower().startswith(f"{verdict}. ")
    assert " ".join(str(found).split()).startswith(found.paragraph)
    assert found.reasons[0][1:] in html.unescape(found._repr_html_())


def test_pilots_are_what_a_plain_loop_gives():
    """One seed of the last level beside torch's own AdamW with a cosine, on the batches that the task draws."""
    module = Model()
    batches = list(loader())
    found = assess(module, batches, WINS, total_steps=STEPS, budget=ENOUGH).numbers["pilots"][-1]
    draws = generator(0, "batches")
    index = [torch.randint(len(batches), (3,), generator=draws) for _ in range(STEPS)]
    model = copy.deepcopy(module.net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for chosen in index:
        inputs, targets = batches[chosen[1]]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs).squeeze(-1), targets).backward()
        optimizer.step()
        cosine.step()
    with torch.no_grad():
        losses = [nn.functional.mse_loss(model(x).squeeze(-1), y) for x, y in batches[:MEASURED]]
    assert found["adamw"]["0.001"]["train"][1] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_nothing_of_the_user_changes():
    shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(5))
    expected = [batch[0] for batch in loader(shuffle=True, generator=torch.Generator().manual_seed(5))]
    module, rule = Model().eval(), copy.deepcopy(WINS)
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assess(module, shuffled, rule, total_steps=STEPS, budget="20steps")
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.training
    assert module._trainer is None
    assert torch.equal(rule.log_lr, WINS.log_lr)
    assert all(torch.equal(a, b[0]) for a, b in zip(expected, shuffled, strict=True))


def test_budget_is_kept_and_stated():
    found = assess(Model(), Data(), load_rule("base"), total_steps=10**6, budget=3)
    seconds = found.numbers["seconds"]
    assert seconds["taken"] < 4.5  # room for a machine that pauses
    assert found.numbers["pilots"]
    assert f"{seconds['taken']:.1f} s of 3.0 s allowed" in str(found)


def test_default_budget_is_a_twentieth_of_the_planned_run_and_enough_for_pilots():
    assert budget_seconds(None, 0.1, 20_000) == (pytest.approx(100.0), "5% of the planned run")
    assert budget_seconds(None, 0.001, 20_000)[0] == 20.0


def test_no_time_for_a_pilot_is_said():
    found = assess(Model(), Data(), WINS, total_steps=40, budget=1e-3)
    assert found.numbers["pilots"] == []
    assert found.verdict == "use it with care"
    assert "no time for a pilot" in found.paragraph
    assert found.findings.cost.slowdown == found.numbers["cost"]["slowdown"]
    assert found.findings.pilots.to_json().items() <= found.numbers.items()


def test_few_batches_are_read_and_each_once():
    served = []

    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return 10_000

        def __getitem__(self, index):
            served.append(index)
            return torch.randn(6), torch.zeros(())

    assess(Model(), torch.utils.data.DataLoader(Counting(), batch_size=4), WINS, total_steps=20, budget=2)
    assert 4 * FIRST <= len(served) <= 4 * 20
    assert served == list(range(len(served)))


def test_hooks_see_each_batch_once():
    class Shifted(Model):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 1.0, batch[1]

    plain = list(loader())
    train, valid = readers(Shifted(), plain, plain)
    train.take(4)
    valid.take(100)
    assert (len(train.batches), len(valid.batches)) == (4, len(plain))
    first = PilotTask(Shifted(), StackedBatches(train.batches[:1], "first"))
    task, reason = first.with_batches(train.batches, valid.batches)
    assert reason == ""
    for split, count in (("train", 4), ("valid", len(plain))):
        expected = torch.stack([batch[0] + 1.0 for batch in plain[:count]])
        assert torch.equal(task.data[split].tensors["batch[0]"], expected)


def test_its_own_loaders_and_a_negative_loss():
    class Own(Model):
        def train_dataloader(self):
            return loader()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) - 1e6

    found = assess(Own(), None, WINS, total_steps=STEPS, budget=ENOUGH)
    assert found.verdict == "use it", str(found)
    assert any("no validation data" in note for note in found.numbers["notes"])


class Manual(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Two(Model):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


class NoLoss(Model):
    def training_step(self, batch, batch_idx):
        return None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Manual()}, "Manual uses manual optimization"),
        ({"model": Two()}, "returns 2 optimizers; assess compares"),
        ({"model": NoLoss()}, "gave NoneType for the loss"),
        ({"model": lambda: nn.Linear(1, 1)}, "model gave a Linear; give a LightningModule"),
        ({"data": None}, "Model has no train_dataloader"),
        ({"data": []}, "there is no training batch"),
        ({"data": L.LightningDataModule()}, "has no train_dataloader"),
        ({"total_steps": 0}, "total_steps must be a whole number of at least 1, got 0"),
        ({"total_steps": None}, "total_steps is None"),
        ({"budget": "soon"}, "budget must be seconds, or a text .* got 'soon'"),
        ({"budget": -1}, "budget must be seconds"),
        ({"rule": "nowhere"}, "neither a folder nor an embedded rule"),
    ],
)
def test_refused_with_a_sentence(arguments, message):
    given = {"model": Model(), "data": list(loader()), "rule": WINS, "total_steps": STEPS} | arguments
    with pytest.raises(ValueError, match=message):
        assess(given.pop("model"), given.pop("data"), given.pop("rule"), **given)
