"""Pickles rules as plain data in checkpoints, so that ``torch.load(weights_only=True)`` can read them.

Checkpoints refer to :func:`rebuilt_rule` by the path of this module, so this function must not move.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_lopt.errors import RuleFileError, cause, show
from lightning_lopt.rules.contract.build import TensorSpec, build_rule, check_arguments
from lightning_lopt.rules.contract.registry import RULES


class PickledAsData(nn.Module):
    """A rule that is pickled as name, config and θ; Lightning pickles hyperparameters, which may include a rule.

    Rules of classes that are not registered are pickled like other modules, and need ``weights_only=False``.
    """

    rule_name: ClassVar[str] = ""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments that build this rule again, JSON values only; θ is not part of it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if RULES.get(self.rule_name) is not type(self):
            return super().__reduce_ex__(protocol)
        return rebuilt_rule, (self.rule_name, self.config, dict(self.state_dict()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the rule like other modules: with the mode, the hooks and all other attributes."""
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        return copied


def rebuilt_rule(rule_name: str, config: dict[str, Any], theta: dict[str, Tensor]) -> nn.Module:
    """The registered rule of this name, with its config and θ; a pickled rule refers to this function.

    Raises:
        RuleFileError: if there is no such rule, or config and θ do not fit the rule.
    """
    label = "the rule in a checkpoint"
    if not isinstance(rule_name, str) or rule_name not in RULES:
        raise RuleFileError(f"{label} is {show(rule_name)}, which is none of {', '.join(sorted(RULES))}.")
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in theta.items()}
    try:
        config = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise RuleFileError(f"{label} has a config that JSON cannot hold ({cause(error)}); correct it.") from error
    arguments = check_arguments(RULES[rule_name], config, label)
    rule = build_rule(RULES[rule_name], arguments, specs, label, label)
    rule.load_state_dict(theta, assign=True)
    return rule


# Hyperparameters may hold a rule, or the path of a rule; loading either runs no code from a file.
torch.serialization.add_safe_globals([rebuilt_rule, type(Path())])
