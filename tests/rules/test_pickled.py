"""Rules, and the paths of rules, as hyperparameters of a module: checkpoints with them load as weights only."""

import copy
import io
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_lopt import LearnedOptimizer, load_rule, save_rule
from lightning_lopt.errors import RuleFileError
from lightning_lopt.rules.base import RULES
from lightning_lopt.rules.pickled import rebuilt_rule


def moved(rule):
    """``rule`` with another θ than it begins with."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
    return rule


def same(one, other):
    theta, others = one.state_dict(), other.state_dict()
    return (
        type(one) is type(other)
        and one.config == other.config
        and all(torch.equal(theta[name], others[name]) for name in theta)
    )


@pytest.mark.parametrize("name", sorted(RULES))
def test_there_and_back_without_running_code(name):
    rule, file = moved(RULES[name]()), io.BytesIO()
    torch.save({"rule": rule}, file)
    file.seek(0)
    drawn = torch.get_rng_state()
    assert same(torch.load(file, weights_only=True)["rule"], rule)
    assert torch.equal(torch.get_rng_state(), drawn)
    copied = copy.deepcopy(rule.eval())
    assert same(copied, rule)
    assert not copied.training  # copies are copies, not built anew


class Net(L.LightningModule):
    def __init__(self, rule="base"):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return LearnedOptimizer(self.net, self.hparams.rule, total_steps=4)


@pytest.mark.parametrize("kind", ["name", "path", "rule"])
@pytest.mark.filterwarnings("ignore:.*is an instance of `nn.Module`.*")
def test_a_module_with_a_rule_in_its_hyperparameters_loads_again(tmp_path, kind):
    save_rule(load_rule("base"), tmp_path / "rule")
    rule = {"name": "base", "path": tmp_path / "rule", "rule": moved(load_rule("base"))}[kind]
    trainer = L.Trainer(
        max_steps=4, logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(Net(rule), torch.randn(4, 2, 3))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    found = loaded.hparams.rule
    assert same(found, rule) if kind == "rule" else Path(found) == Path(rule)
    assert isinstance(loaded.configure_optimizers(), LearnedOptimizer)


def test_a_rule_that_is_none_is_refused_in_a_sentence():
    with pytest.raises(RuleFileError, match=r"the rule in a checkpoint is 'nothing', which is none of"):
        rebuilt_rule("nothing", {}, {})
    with pytest.raises(RuleFileError, match="unknown argument 'weight'"):
        rebuilt_rule("adam", {"weight": 3}, {})
    for value in (float("nan"), float("inf"), {1, 2}):
        with pytest.raises(RuleFileError, match="has a config that JSON cannot hold"):
            rebuilt_rule("adam", {"lr": value}, {})
