"""θ in the format of PyLO: safetensors with the ``state_dict`` names of its modules.

A weight matrix has the shape (outputs, inputs), for Celo2 (inputs, outputs). The files contain no step sizes and no
decays; their values are the default arguments of PyLO's optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.files import parse_json_object
from lightning_lopt.io.importers.array_format import ArrayFormat, Kind, Shapes, Theta
from lightning_lopt.io.importers.flax_theta import ADAFAC, CELO2, FLAX_KINDS, PARTS
from lightning_lopt.rules import AdafacMLPRule, Celo2BaseRule, Celo2Rule, MuAdafacMLPRule, VeLORule

# The published weights of µLO were learned with these offsets of the decays, the defaults of µLO's optimizers.
MU_OFFSETS = {
    "momentum_decays": [0.15216392, 0.14245212, 0.06812963],
    "rms_decays": [0.01079706],
    "adafactor_decays": [0.18621896, -0.10864615, -0.06185547],
}

META_LAYERS = ("input", "linear_0", "output")


def _meta_mlp_shapes(hidden: int) -> Shapes:
    """MetaMLP with one hidden layer between the first and the last."""
    shapes: Shapes = {}
    for name, (inputs, outputs) in zip(META_LAYERS, ((39, hidden), (hidden, hidden), (hidden, 2)), strict=True):
        shapes |= {f"network.{name}.weight": (outputs, inputs), f"network.{name}.bias": (outputs,)}
    return shapes


def _elo(theta: Theta) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for layer, name in enumerate(META_LAYERS):
        arrays |= {
            f"nn/~/w{layer}": theta[f"network.{name}.weight"].mT,
            f"nn/~/b{layer}": theta[f"network.{name}.bias"],
        }
    return ADAFAC.values(arrays)


def _mu(theta: Theta) -> dict[str, Tensor]:
    first_bias = theta["network.input.bias"]
    offsets = zip(("momentum_offsets", "second_moment_offset", "factored_offsets"), MU_OFFSETS.values(), strict=True)
    return _elo(theta) | {name: torch.tensor(values, dtype=first_bias.dtype) for name, values in offsets}


def _celo2_shapes(hidden: int) -> Shapes:
    shapes: Shapes = {f"w0.{index}": (inputs, hidden) for index, inputs in enumerate(PARTS)}
    shapes |= {"dense_w.0": (hidden, hidden), "dense_w.1": (hidden, 3)}
    return shapes | {"b0": (hidden,), "dense_b.0": (hidden,), "dense_b.1": (3,)}


def _celo2(theta: Theta) -> dict[str, Tensor]:
    names = {f"w0__{index}": f"w0.{index}" for index in range(len(PARTS))} | {"b0": "b0"}
    names |= {"w1": "dense_w.0", "w2": "dense_w.1", "b1": "dense_b.0", "b2": "dense_b.1"}
    return CELO2.values({f"ff_mod_stack/~/{flax_name}": theta[name] for flax_name, name in names.items()})


CONTROLLER = {
    "mix_layer1": "linear",
    "mix_layer2": "linear_1",
    "final_mix_layer": "linear_2",
    "lstm.linear": "rnn/linear",
    "rnn_to_controls": "rnn_to_controls",
    "step_size": "step_size",
}


def _stack_names(suffix: str) -> dict[str, str]:
    """Names of the arrays of VeLOMLP by layer: suffix "_" for the bank of networks, "" for the last mixture."""
    return {
        f"{kind}{layer}": f"{name}_{long}{suffix}{index}"
        for layer, (name, index) in enumerate((("input", ""), ("hidden", ".0"), ("output", "")))
        for kind, long in (("w", "weights"), ("b", "bias"))
    }


def _velo_shapes(lstm_hidden: int, copies: int, hidden: int) -> Shapes:
    bank = {"w0": (hidden, 30), "w1": (hidden, hidden), "w2": (3, hidden), "b0": (hidden,), "b1": (hidden,), "b2": (3,)}
    flax_shapes = FLAX_KINDS["velo"].format.shapes(lstm_hidden, copies, hidden)
    shapes: Shapes = {name: (copies, *bank[layer]) for layer, name in _stack_names("_").items()}
    shapes |= {name: bank[layer] for layer, name in _stack_names("").items()}
    for name, path in CONTROLLER.items():
        shapes |= {f"{name}.weight": flax_shapes[f"rnn_params/{path}/w"][::-1]}
        shapes |= {f"{name}.bias": flax_shapes[f"rnn_params/{path}/b"]}
    return shapes | {f"lstm_init_state.{index}": (1, lstm_hidden) for index in range(2)}


def _velo(theta: Theta) -> dict[str, Tensor]:
    bank = {layer: theta[name] for layer, name in _stack_names("_").items()}
    parts = torch.split(bank.pop("w0").mT, list(PARTS), 1)
    arrays = {f"ff_mod_stack/~/w0__{index}": part for index, part in enumerate(parts)}
    for layer, value in bank.items():
        arrays[f"ff_mod_stack/~/{layer}"] = value.mT if layer.startswith("w") else value
    for name, path in CONTROLLER.items():
        arrays[f"rnn_params/{path}/w"], arrays[f"rnn_params/{path}/b"] = (
            theta[f"{name}.weight"].mT,
            theta[f"{name}.bias"],
        )
    arrays |= {f"lstm_init_state/{part}": theta[f"lstm_init_state.{i}"] for i, part in enumerate(("hidden", "cell"))}
    return FLAX_KINDS["velo"].format.values(arrays)


HIDDEN = {"hidden": ("network.input.bias", 0)}
META_MLP = ArrayFormat(HIDDEN, _meta_mlp_shapes, _elo)
META_MLP_OFFSETS = ArrayFormat(HIDDEN, _meta_mlp_shapes, _mu)
CELO2_MLP = ArrayFormat({"hidden": ("b0", 0)}, _celo2_shapes, _celo2)
VELO = ArrayFormat(
    {"lstm_hidden": ("lstm_init_state.0", 1), "copies": ("input_bias_", 0), "hidden": ("input_bias_", 1)},
    _velo_shapes,
    _velo,
)

ADAM = {"adam_mult": 1.0, "adam_betas": [0.9, 0.95], "adam_bias_correction": True}
ADAM_NOTE = "PyLO's Adam adds ε to the root and clips gradients at 1000; this rule adds ε inside the root."
OFFSETS_NOTE = "The files have no offsets of the decays and no step size; the defaults of PyLO's optimizers are used."
DECAY_NOTE = "The weight decay is PyLO's default, 0.1. PyLO also clips the gradient norm at 1; set this in the Trainer."

PYLO_KINDS = {
    "adafac_mlp": Kind(AdafacMLPRule, META_MLP_OFFSETS, {"step_mult": 0.01}, note=OFFSETS_NOTE),
    "mu_adafac_mlp": Kind(MuAdafacMLPRule, META_MLP_OFFSETS, {"step_mult": 0.01}, note=OFFSETS_NOTE),
    "elo": Kind(AdafacMLPRule, META_MLP),
    "velo": Kind(VeLORule, VELO, note="PyLO multiplies each step by a learning rate, 0.001 by default; here it is 1."),
    "celo2": Kind(Celo2Rule, CELO2_MLP, ADAM, note=ADAM_NOTE),
    "celo2_base": Kind(Celo2BaseRule, CELO2_MLP),
    "elo_celo2": Kind(Celo2Rule, CELO2_MLP, ADAM | {"weight_decay": 0.1}, note=f"{ADAM_NOTE} {DECAY_NOTE}"),
}

# Entries of config.json that are fixed in the rules of this package, with the accepted values.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation": ("relu",), "mix_layers": (True,), "input_size": (30, 39), "output_size": (3,), 
    "hidden_layers": (1, 2),
}  # fmt: skip


def check_config(data: bytes, label: str) -> None:
    """Check that ``config.json`` of a folder describes modules that the rules of this package can represent.

    Raises:
        RuleFileError: if it describes other modules, is not a JSON object, or belongs to a rule of lightning_lopt.
    """
    config: Mapping[str, Any] = parse_json_object(data, label)
    if config.get("format") == "lightning_lopt":
        raise RuleFileError(f"{label} already has the format of lightning_lopt; load the rule with load_rule.")
    for name, allowed in FIXED.items():
        if name in config and config[name] not in allowed:
            raise RuleFileError(
                f"{label} says {name}={show(config[name])}, but only {' or '.join(map(repr, allowed))} can be "
                "imported; take other weights."
            )
