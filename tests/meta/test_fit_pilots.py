"""Pilots of a fit begin from its present state, as long as the rule makes the steps of the fit."""

from unittest.mock import Mock

import pytest
from torch import nn

from lightning_lopt import AdamRule, LearnedOptimizer
from lightning_lopt.meta.fit_pilots import snapshot_of
from lightning_lopt.optim.guard_judge import Cause
from lightning_lopt.optim.guard_run import Guard


def test_there_are_no_pilots_of_a_rule_that_a_guard_has_replaced(monkeypatch):
    """Whatever words the state of the guard has."""
    monkeypatch.setattr(Guard, "state", "AdamW since step 7")
    net = nn.Linear(2, 1)
    optimizer = LearnedOptimizer(net, AdamRule(), total_steps=10, guard=True)
    trainer = Mock(gradient_clip_val=None)
    assert snapshot_of(trainer, net, optimizer, Mock(roles={}), 0).step == 0
    optimizer._guard.cause = Cause.LOST
    with pytest.raises(ValueError, match=r"has given the training to AdamW \(AdamW since step 7\)"):
        snapshot_of(trainer, net, optimizer, Mock(roles={}), 7)
