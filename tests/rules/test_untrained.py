"""Rules that step at random say so until they are meta-trained or loaded."""

import copy

import lightning.pytorch as L
import pytest
import torch
from rule_catalogue import cases
from test_contract import tensors

from lightning_lopt import (
    PES,
    LSTMRule,
    MetaTrainer,
    MLPRule,
    ResidualRule,
    StepContext,
    TaskDataModule,
    VeLORule,
    load_rule,
    save_rule,
)
from lightning_lopt.rules.contract.untrained import untrained_warning
from lightning_lopt.tasks import QuadraticFamily

SHAPES = {"vector": (7,), "matrix": (4, 5)}


def first_step(entry, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rule = entry.build(**entry.config)
    params, grads = (tensors(number, shapes=SHAPES, dtype=torch.float32) for number in (0, 1))
    context = StepContext(torch.tensor(0.0), torch.tensor(10.0), torch.tensor(1.0))
    with torch.no_grad():
        updates, _ = rule(params, grads, rule.init_state(params, {}), context)
    return rule, torch.cat([update.flatten() for update in updates.values()])


@pytest.mark.parametrize("entry", cases())
def test_a_rule_whose_step_depends_on_the_seed_warns(entry):
    (rule, step), (_, other) = (first_step(entry, seed) for seed in (0, 1))
    warning = untrained_warning(rule)
    assert (warning is not None) == (not torch.equal(step, other))
    assert warning is None or warning.startswith(f"rule {rule.rule_name!r} has random weights")


def test_loaded_rules_do_not_warn_nor_do_copies_of_them(tmp_path):
    rule = VeLORule(lstm_hidden=8, copies=2)
    assert untrained_warning(copy.deepcopy(rule))
    loaded = load_rule(save_rule(rule, tmp_path / "rule"))
    assert untrained_warning(loaded) is None
    assert untrained_warning(copy.deepcopy(loaded)) is None
    holder = torch.nn.ModuleDict({"rule": LSTMRule()})
    holder.load_state_dict({}, strict=False)
    assert untrained_warning(holder["rule"])
    holder.load_state_dict(holder.state_dict())
    assert untrained_warning(holder["rule"]) is None


def test_meta_trained_rules_do_not_warn():
    rule = MLPRule(hidden=4)
    module = MetaTrainer(rule, PES(4, pairs=2), groups=1, horizons=(4, 8))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    assert untrained_warning(rule)
    trainer.fit(module, TaskDataModule(QuadraticFamily()))
    assert untrained_warning(rule) is None
    assert untrained_warning(ResidualRule()) is None
