"""Former places of modules, under which they can still be imported for one release."""

from __future__ import annotations

import sys
from importlib import import_module

PACKAGE = "lightning_lopt.rules"
MOVED = {
    "accumulators": "shared.averages",
    "arguments": "checks",
    "arithmetic": "shared.arithmetic",
    "averages": "shared.moments",
    "calibration": "residual_parts.calibration",
    "constants": "shared.schedules",
    "controller": "residual_parts.controller",
    "direction": "residual_parts.direction",
    "eigenbasis": "residual_parts.eigenbasis",
    "entry_network": "shared.fast_entry_network",
    "factored": "shared.moments",
    "features": "shared.features",
    "loss_buffer": "shared.loss_features",
    "loss_statistics": "shared.loss_features",
    "mixture_rule": "shared.mixture_rule",
    "recurrent": "shared.recurrent",
    "role_constants": "residual_parts.role_constants",
    "roles": "contract.roles",
    "rnn_mlp_signals": "rnn_mlp",
    "signals": "residual_parts.signals",
    "stacks": "contract.stacks",
    "structure": "residual_parts.structure",
    "tensor_controller": "shared.tensor_controller",
    "time_features": "shared.time_features",
    "untrained": "contract.untrained",
}
"""Present name of a module of :mod:`lightning_lopt.rules`, by its former name."""


def keep_former_names() -> None:
    """Let the import system find each module by its former name, too."""
    package = sys.modules[PACKAGE]
    for before, today in MOVED.items():
        module = import_module(f"{PACKAGE}.{today}")
        sys.modules[f"{PACKAGE}.{before}"] = module
        setattr(package, before, module)
