"""assess reaches pilots on modules as people write them, and says in one sentence what it cannot use."""

import pytest
import torch
from assessed import Data, Model
from awkward_modules import AWKWARD, BATCHES, Breaks, DrawsFromItsGenerator, Plain, Pretrained, loader

from lightning_lopt import AdamRule, SGDRule, assess
from lightning_lopt.cli import main

RULE = AdamRule(1e-2)


@pytest.mark.parametrize("name", AWKWARD)
def test_pilots_are_reached_and_nothing_changes(name):
    build, data = AWKWARD[name]
    module = build()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    held = {key: value for key, value in vars(module).items() if key != "_parameters"}
    found = assess(module, data(), RULE, total_steps=5, budget=20)
    assert found.numbers["pilots"], str(found)
    assert module._trainer is None
    assert {key: value for key, value in vars(module).items() if key != "_parameters"} == held
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_metric_that_is_the_loss_gives_the_loss_of_its_function():
    build, data = AWKWARD["a metric for a loss"]
    same = {"total_steps": 5, "budget": 20}
    metric, function = (assess(kind, data(), RULE, **same).numbers["pilots"][-1] for kind in (build, Plain))
    assert metric["horizon"] == function["horizon"] == 5
    assert metric["rule"]["train"] == pytest.approx(function["rule"]["train"], rel=1e-3)


def test_a_data_module_s_generator_is_put_back():
    data = DrawsFromItsGenerator()
    before = data.draws.get_state()
    assess(Plain, data, RULE, total_steps=200, budget=0.3)
    assert torch.equal(data.draws.get_state(), before)
    assert data.trainer is None


def test_a_pretrained_module_is_refused_with_the_reason():
    found = assess(Pretrained(), loader(), AdamRule(1e-6), total_steps=5, budget=20)
    assert found.verdict == "don't"
    assert f"BatchNorm layers have counted {BATCHES} batches" in found.paragraph


class Slow(SGDRule):
    """Plain descent, and many times as slow as it need be."""

    def at(self, shared, context):
        if not torch._C._are_functorch_transforms_active():  # in pilots only the steps matter
            for _ in range(60):
                float(torch.linalg.svd(torch.ones(60, 60)).S[0])  # a value that is read, so that no graph leaves it out
        return super().at(shared, context)


def test_a_rule_that_is_slower_by_far_is_not_recommended():
    """In as many steps it may be ahead of AdamW; in the same time AdamW fits these few examples to the last digit."""
    found = assess(Plain, loader(), Slow(0.05), total_steps=40, budget=4)
    assert found.numbers["cost"]["slowdown"] > 5
    assert found.numbers["pilots"]
    assert found.verdict != "use it", str(found)
    assert "times as long as with AdamW" in found.paragraph


def fails_in(method):
    def raising(self, *args):
        raise KeyError("no such file")

    return type("M", (Plain,), {method: raising})


@pytest.mark.parametrize(
    ("model", "data", "sentence"),
    [
        (Breaks, loader, r"Breaks.training_step fails .*\(OutOfWine: the barrel is empty\)"),
        (fails_in("__init__"), loader, r"M\(\) fails \(KeyError: 'no such file'\)"),
        (fails_in("train_dataloader"), lambda: None, r"M.train_dataloader fails \(KeyError"),
        (fails_in("on_after_batch_transfer"), loader, r"reading the training batches fails \(KeyError"),
        (fails_in("configure_model"), loader, r"M.configure_model fails \(KeyError"),
    ],
)
def test_whatever_it_raises_is_one_sentence(model, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        assess(model, data(), RULE, total_steps=20, budget=1)


def test_the_command_ends_with_status_2(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from awkward_modules import Breaks, loader\n\n\nclass Mine(Breaks):\n    def train_dataloader(self):\n"
        "        return loader()\n"
    )
    assert main(["assess", f"{tmp_path}/mine.py:Mine", "--total-steps", "10"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("lightning-lopt: ") == 1
    assert "Mine.training_step fails" in printed.err


def test_losses_in_the_text_are_those_in_the_table():
    found = assess(Model, Data(), RULE, total_steps=5, budget=20)
    row = next(line for line in str(found).splitlines() if line.startswith(f"  {5:>6} {16:>6}"))
    ours = found.reasons[0].split("validation loss of the rule was ")[1].split(", and ")[0]
    theirs = found.reasons[0].split("with a swept learning rate was ")[1].split(";")[0]
    assert f"/ {ours}" in row
    assert f"/ {theirs}" in row
