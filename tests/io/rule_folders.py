"""Folders of rules, good ones and such as are damaged on purpose."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_lopt import (
    AdafacMLPRule,
    AdamRule,
    Celo2BaseRule,
    Celo2Rule,
    CeloRule,
    LSTMRule,
    MLPRule,
    MuAdafacMLPRule,
    MuonRule,
    NNAdamRule,
    ResidualRule,
    RNNMLPRule,
    ScheduleFreeAdamRule,
    SGDRule,
    UpdateRule,
    VeLORule,
)
from lightning_lopt.rules import RULES

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

RULES_TO_SAVE: dict[str, Callable[[], UpdateRule]] = {
    "sgd": SGDRule,
    "sgd-nesterov": lambda: SGDRule(lr=3, momentum=0.5, nesterov=True, weight_decay=0.1, schedule="cosine"),
    "adam": AdamRule,
    "adam-cosine": lambda: AdamRule(lr=1e-4, betas=(0.0, 0.95), eps=1e-12, weight_decay=0.1, schedule="cosine"),
    "residual": ResidualRule,
    "residual-hand-designed": lambda: ResidualRule(direction=False, controller=False, orthogonalised=[]),
    "residual-direction": lambda: ResidualRule(controller=False, direction_hidden=3),
    "residual-controller": lambda: ResidualRule(direction=False, controller_hidden=1, step_range=1.5),
    "celo2_base": lambda: Celo2BaseRule(hidden=4, exp_mult=1, momentum_decays=[0.5], factored_decays=[0.9]),
    "celo2": lambda: Celo2Rule(adam_roles=["head"], matrix="last_two"),
    "muon": lambda: MuonRule(lr=0.01, weight_decay=0.1, schedule="cosine"),
    "schedule_free_adam": lambda: ScheduleFreeAdamRule(lr=0.01, weight_decay=0.1),
    "adafac_mlp": AdafacMLPRule,
    "mu_adafac_mlp": lambda: MuAdafacMLPRule(base_width=64, matrix="stored"),
    "mlp": lambda: MLPRule(hidden=4),
    "celo": lambda: CeloRule(lstm_hidden=8, copies=2, phase=1),
    "velo": lambda: VeLORule(lstm_hidden=8, copies=2, forgets=True),
    "rnn_mlp": lambda: RNNMLPRule(lstm_hidden=8),
    "lstm": lambda: LSTMRule(layers=1),
    "nn_adam": NNAdamRule,
    "residual-rotated": lambda: ResidualRule(orthogonalised=[], rotated=["matrix"], horizon_power=0.3),
    "residual-heads": lambda: ResidualRule(orthogonalised=["matrix", "head", "embedding"]),
}
RULES_TO_SAVE |= {  # a rule that is added to the package comes here by itself
    name: rule
    for name, rule in RULES.items()
    if rule.__module__.startswith("lightning_lopt.") and name not in {key.split("-")[0] for key in RULES_TO_SAVE}
}


def trained(make: Callable[[], UpdateRule], dtype: torch.dtype = torch.float32) -> UpdateRule:
    """A rule whose weights are no initial values: of both signs, and of sizes from the subnormal to the huge."""
    draws = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]):
        rule = make().to(dtype)
    with torch.no_grad():
        for value in rule.parameters():
            exponents = torch.empty(value.shape, dtype=torch.float64).uniform_(-44, 38, generator=draws)
            signs = torch.randint(2, value.shape, generator=draws) * 2 - 1
            value.copy_(signs * 10**exponents)
    return rule


def same(one: UpdateRule, other: UpdateRule) -> bool:
    """Whether two rules have the same class, config and weights, bit for bit."""
    if type(one) is not type(other) or one.config != other.config:
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return config


def write_config(folder: Path, config: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(config))


def edit_config(folder: Path, **entries: Any) -> None:
    write_config(folder, read_config(folder) | entries)


def edit_arguments(folder: Path, **arguments: Any) -> None:
    config = read_config(folder)
    edit_config(folder, config=config["config"] | arguments)


def write_weights(folder: Path, data: bytes) -> None:
    """Write weights that ``config.json`` agrees with, so that the SHA-256 does not hide what else is wrong."""
    (folder / WEIGHTS).write_bytes(data)
    edit_config(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def unpack(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and body of the folder's weights."""
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file from any header: an object, or the very bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


class Canary:
    """Runs code when it is unpickled: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def canary_pickle(path: Path) -> bytes:
    return pickle.dumps(Canary(path))
