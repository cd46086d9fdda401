"""θ in the format of the JAX implementations: google/learned_optimization, and Celo and Celo2, which build on it.

Names are paths in the tree, joined by "/". A weight matrix has the shape (inputs, outputs). K copies of a network are
stacked along the first axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.files import TAKE_AGAIN
from lightning_lopt.io.importers.array_format import ArrayFormat, Kind, Shapes, Theta
from lightning_lopt.io.importers.msgpack import Array, MsgpackTree, read_tree
from lightning_lopt.rules import (
    AdafacMLPRule,
    Celo2BaseRule,
    Celo2Rule,
    CeloRule,
    MLPRule,
    MuAdafacMLPRule,
    NNAdamRule,
    RNNMLPRule,
    VeLORule,
)

PARTS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
"""Inputs of each part of the first layer of VeLO, Celo and Celo2."""

# This package splits a first layer into inner, outer and time inputs: the indices are those of PARTS (INNER, OUTER) and
# of the inputs of AdafacMLP (ADAFAC_...).
INNER, OUTER = (0, 1, 2, 3, 4, 5, 6, 7, 8, 13), (9, 11, 10, 12)
ADAFAC_INNER = [*range(13), 25, 26, 27]
ADAFAC_OUTER = [13, 14, 15, 19, 20, 21, 16, 17, 18, 22, 23, 24]
ADAFAC_TIME = [*range(28, 39)]

FLOATS = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}


def _dense(layers: Mapping[str, tuple[int, int]]) -> Shapes:
    """Shapes of ``w`` and ``b`` of dense layers, from (inputs, outputs) by the path of their module."""
    shapes: Shapes = {}
    for path, (inputs, outputs) in layers.items():
        shapes |= {f"{path}/w": (inputs, outputs), f"{path}/b": (outputs,)}
    return shapes


def _perceptron_shapes(prefix: str, inputs: int, outputs: int, hidden: int) -> Shapes:
    sizes = (inputs, hidden, hidden, outputs)
    return _dense({f"{prefix}mlp/~/linear_{layer}": sizes[layer : layer + 2] for layer in range(3)})  # type: ignore[misc]


def _perceptron(prefix: str, normalised: int, theta: Theta) -> dict[str, Tensor]:
    """The network of MLP and RNN-MLP; inputs with an index >= ``normalised`` are the same for all entries."""
    values: dict[str, Tensor] = {}
    for layer in range(3):
        path = f"{prefix}mlp/~/linear_{layer}"
        values |= {f"network.weight_{layer}": theta[f"{path}/w"].mT, f"network.bias_{layer}": theta[f"{path}/b"]}
    first_weight = values.pop("network.weight_0")
    return values | {
        "network.inner_0": first_weight[:, :normalised],
        "network.constant_0": first_weight[:, normalised:],
    }


def _lstm_shapes(inputs: int, lstm_hidden: int) -> Shapes:
    initial = {f"lstm_init_state/{part}": (1, lstm_hidden) for part in ("hidden", "cell")}
    return initial | _dense({"rnn_params/rnn/linear": (inputs + lstm_hidden, 4 * lstm_hidden)})


def _lstm(prefix: str, theta: Theta) -> dict[str, Tensor]:
    values = {f"{prefix}initial_{part}": theta[f"lstm_init_state/{part}"][0] for part in ("hidden", "cell")}
    return values | _layers({f"{prefix}gates": "rnn_params/rnn/linear"}, theta)


def _layers(names: Mapping[str, str], theta: Theta) -> dict[str, Tensor]:
    """The weights and biases of layers.

    Args:
        names: path of each layer in the file, by its name in this package.
        theta: the arrays of the file.
    """
    values: dict[str, Tensor] = {}
    for name, path in names.items():
        values |= {f"{name}.weight": theta[f"{path}/w"].mT, f"{name}.bias": theta[f"{path}/b"]}
    return values


LSTM_SIZE = {"lstm_hidden": ("lstm_init_state/hidden", 1)}


def _adafac_shapes(hidden: int, offsets: bool = True) -> Shapes:
    shapes: Shapes = {"nn/~/w0": (39, hidden), "nn/~/w1": (hidden, hidden), "nn/~/w2": (hidden, 2)}
    shapes |= {"nn/~/b0": (hidden,), "nn/~/b1": (hidden,), "nn/~/b2": (2,)}
    return shapes | ({"momentum_decays": (3,), "rms_decays": (1,), "adafactor_decays": (3,)} if offsets else {})


def _adafac(theta: Theta) -> dict[str, Tensor]:
    first_weight = theta["nn/~/w0"].mT
    values = {
        "network.inner_0": first_weight[:, ADAFAC_INNER],
        "network.outer_0": first_weight[:, ADAFAC_OUTER],
        "network.constant_0": first_weight[:, ADAFAC_TIME],
    }
    values |= {f"network.weight_{layer}": theta[f"nn/~/w{layer}"].mT for layer in (1, 2)}
    values |= {f"network.bias_{layer}": theta[f"nn/~/b{layer}"] for layer in range(3)}
    offsets = {"momentum_offsets": "momentum_decays", "second_moment_offset": "rms_decays"}
    offsets |= {"factored_offsets": "adafactor_decays"}
    # If a file has no offsets, the decays keep the values of the arguments.
    zeros = {"momentum_offsets": 3, "second_moment_offset": 1, "factored_offsets": 3}
    return values | {name: theta.get(path, first_weight.new_zeros(zeros[name])) for name, path in offsets.items()}


def _stack_shapes(lead: Sequence[int], hidden: int) -> Shapes:
    """Shapes of the network of VeLO, Celo and Celo2, whose first layer is split into parts."""
    sizes: Shapes = {f"w0__{index}": (inputs, hidden) for index, inputs in enumerate(PARTS)}
    sizes |= {"w1": (hidden, hidden), "w2": (hidden, 3), "b0": (hidden,), "b1": (hidden,), "b2": (3,)}
    return {f"ff_mod_stack/~/{name}": (*lead, *shape) for name, shape in sizes.items()}


def _stack(prefix: str, theta: Theta) -> dict[str, Tensor]:
    parts = [theta[f"ff_mod_stack/~/w0__{index}"] for index in range(len(PARTS))]
    values = {
        f"{prefix}inner_0": torch.cat([parts[index] for index in INNER], -2).mT,
        f"{prefix}outer_0": torch.cat([parts[index] for index in OUTER], -2).mT,
    }
    values |= {f"{prefix}weight_{layer}": theta[f"ff_mod_stack/~/w{layer}"].mT for layer in (1, 2)}
    return values | {f"{prefix}bias_{layer}": theta[f"ff_mod_stack/~/b{layer}"] for layer in range(3)}


def _celo2_shapes(hidden: int) -> Shapes:
    return _stack_shapes((), hidden)


def _mixture_shapes(signals: int, lstm_hidden: int, copies: int, hidden: int) -> Shapes:
    names = ("linear", "linear_1", "linear_2")  # "linear" is unused
    layers = {f"rnn_params/{name}": (signals, lstm_hidden) for name in names}
    layers |= {"rnn_params/rnn_to_controls": (lstm_hidden, copies), "rnn_params/step_size": (lstm_hidden, 1)}
    return _stack_shapes((copies,), hidden) | _lstm_shapes(lstm_hidden, lstm_hidden) | _dense(layers)


def _mixture(theta: Theta) -> dict[str, Tensor]:
    names = {"pooled": "linear_1", "own": "linear_2", "share": "rnn_to_controls", "step": "step_size"}
    layers = {f"controller.{name}": f"rnn_params/{path}" for name, path in names.items()}
    return _stack("networks.", theta) | _lstm("controller.lstm.", theta) | _layers(layers, theta)


def _mixture_format(signals: int) -> ArrayFormat:
    first_bias = "ff_mod_stack/~/b0"
    return ArrayFormat(
        LSTM_SIZE | {"copies": (first_bias, 0), "hidden": (first_bias, 1)}, partial(_mixture_shapes, signals), _mixture
    )


def _rnn_mlp_shapes(lstm_hidden: int, hidden: int) -> Shapes:
    layers = {"rnn_to_in_params/rnn_to_in": (lstm_hidden, 18), "rnn_to_ff_params/rnn_to_ff": (lstm_hidden, 17)}
    shapes = _lstm_shapes(52, lstm_hidden) | _dense(layers) | _perceptron_shapes("ffmod_params/", 54, 18, hidden)
    return shapes | {"initial_from_lstm": (18,), "initial_from_mlp": (16,)}


def _rnn_mlp(theta: Theta) -> dict[str, Tensor]:
    layers = {"to_lstms": "rnn_to_in_params/rnn_to_in", "to_network": "rnn_to_ff_params/rnn_to_ff"}
    values = _perceptron("ffmod_params/", 23, theta) | _lstm("lstm.", theta) | _layers(layers, theta)
    initial = {"initial_from_network": "initial_from_mlp", "initial_from_lstm": "initial_from_lstm"}
    return values | {name: theta[path] for name, path in initial.items()}


NN_ADAM_START = [f"per_layer_{name}" for name in ("lr", "beta1", "beta2", "epsilon")]


def _nn_adam_shapes(lstm_hidden: int) -> Shapes:
    controls = {"rnn_to_controls_params/rnn_to_controls": (lstm_hidden, 4)}
    return _lstm_shapes(19, lstm_hidden) | _dense(controls) | dict.fromkeys(NN_ADAM_START, ())


def _nn_adam(theta: Theta) -> dict[str, Tensor]:
    layers = {"controls": "rnn_to_controls_params/rnn_to_controls"}
    return _lstm("lstm.", theta) | _layers(layers, theta) | {"initial": torch.stack([theta[x] for x in NN_ADAM_START])}


ADAFAC = ArrayFormat({"hidden": ("nn/~/b0", 0)}, _adafac_shapes, _adafac)
ELO = ArrayFormat(ADAFAC.sizes, partial(_adafac_shapes, offsets=False), _adafac)
CELO2 = ArrayFormat({"hidden": ("ff_mod_stack/~/b0", 0)}, _celo2_shapes, partial(_stack, "network."))
MLP = ArrayFormat(
    {"hidden": ("mlp/~/linear_0/b", 0)}, partial(_perceptron_shapes, "", 19, 2), partial(_perceptron, "", 8)
)
RNN_MLP = ArrayFormat(LSTM_SIZE | {"hidden": ("ffmod_params/mlp/~/linear_0/b", 0)}, _rnn_mlp_shapes, _rnn_mlp)

FLAX_KINDS = {
    "adafac_mlp": Kind(AdafacMLPRule, ADAFAC),
    "mu_adafac_mlp": Kind(MuAdafacMLPRule, ADAFAC, on_request=True),
    "elo": Kind(AdafacMLPRule, ELO),
    "celo": Kind(CeloRule, _mixture_format(18)),
    "velo": Kind(VeLORule, _mixture_format(30)),
    "celo2": Kind(Celo2Rule, CELO2),
    "celo2_base": Kind(Celo2BaseRule, CELO2),
    "mlp": Kind(MLPRule, MLP),
    "rnn_mlp": Kind(RNNMLPRule, RNN_MLP),
    "nn_adam": Kind(NNAdamRule, ArrayFormat(LSTM_SIZE, _nn_adam_shapes, _nn_adam)),
}


def read_theta(data: bytes, label: str) -> tuple[dict[str, Array], bool]:
    """The arrays of a file by path, and whether the file has the oldest format, without a config.

    A file contains θ alone (``theta.state``), the ``ParameterCheckpoint`` of google/learned_optimization (its files
    ``params``), or a tuple whose first entry is θ (the oldest format).

    Raises:
        RuleFileError: if the file is damaged, or has leaves that are not arrays of numbers.
    """
    tree, oldest = read_tree(data, label), False
    if tree.keys() == {"params", "gen_id", "step"}:
        tree = tree["params"]
    elif tree.keys() == {"0", "1", "2"}:
        tree, oldest = tree["0"], True
    arrays: dict[str, Array] = {}
    _flatten(tree, "", arrays, label)
    return arrays, oldest


def _flatten(tree: MsgpackTree | object, path: str, arrays: dict[str, Array], label: str) -> None:
    """Add the arrays of ``tree`` to ``arrays``."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            _flatten(value, f"{path}/{key}" if path else key, arrays, label)
        return
    if not isinstance(tree, Array) or tree.dtype not in FLOATS:
        leaf = f"an array of {tree.dtype}" if isinstance(tree, Array) else show(tree)
        raise RuleFileError(f"{label} has {leaf} at {show(path)} instead of numbers; check the source of the file.")
    if path in arrays:
        raise RuleFileError(f"{label} has two arrays at {show(path)}; {TAKE_AGAIN}.")
    arrays[path] = tree


def tensor_of(array: Array) -> Tensor:
    """A copy of the array as a tensor; types with fewer than 32 bits become float32."""
    dtype = FLOATS[array.dtype]
    if math.prod(array.shape) == 0:
        return torch.empty(array.shape, dtype=dtype)
    tensor = torch.frombuffer(bytearray(array.data), dtype=dtype).reshape(array.shape)
    return tensor if dtype == torch.float64 else tensor.float()
