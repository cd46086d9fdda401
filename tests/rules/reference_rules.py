"""Our rules with the reference's θ: for each of its classes, where its arrays go."""

import torch

from lightning_lopt import AdafacMLPRule, CeloRule, MLPRule, NNAdamRule, RNNMLPRule, VeLORule

# Inputs of the first layer of AdafacMLP, by number, as our layer has them.
ADAFAC_INNER = [*range(13), 25, 26, 27]
ADAFAC_OUTER = [13, 14, 15, 19, 20, 21, 16, 17, 18, 22, 23, 24]
ADAFAC_TIME = [*range(28, 39)]


def turned(theta, prefix, names):
    """Layers ``w`` (in, out) and ``b`` under ``prefix``, as ours."""
    found = {}
    for index, layer in enumerate(names):
        found[f"weight_{index}"], found[f"bias_{index}"] = theta[f"{prefix}{layer[0]}"].mT, theta[f"{prefix}{layer[1]}"]
    return found


def load(rule, values):
    """The rule with ``values``, which have to be all it has."""
    rule.load_state_dict(values)
    return rule


def adafac_mlp(config, theta):
    rule = AdafacMLPRule(
        config["hidden_size"],
        config["step_mult"],
        config["exp_mult"],
        config["initial_momentum_decays"],
        config["initial_rms_decays"][0],
        config["initial_adafactor_decays"],
        matrix="stored",
    )
    layers = turned(theta, "nn/mlp/", [(f"w{layer}", f"b{layer}") for layer in range(3)])
    first = layers.pop("weight_0")
    layers |= {
        "inner_0": first[:, ADAFAC_INNER],
        "outer_0": first[:, ADAFAC_OUTER],
        "constant_0": first[:, ADAFAC_TIME],
    }
    values = {f"network.{name}": value for name, value in layers.items()}
    values["momentum_offsets"] = theta["momentum_decays"]
    values["second_moment_offset"] = theta["rms_decays"]
    values["factored_offsets"] = theta["adafactor_decays"]
    return load(rule, values)


def mlp(config, theta):
    layers = turned(theta, "", [(f"mlp.~.linear_{layer}/w", f"mlp.~.linear_{layer}/b") for layer in range(3)])
    first = layers.pop("weight_0")
    layers |= {"inner_0": first[:, :8], "constant_0": first[:, 8:]}
    rule = MLPRule(config["hidden_size"], config["step_mult"], config["exp_mult"])
    return load(rule, {f"network.{name}": value for name, value in layers.items()})


# Parts of the first layer of VeLO, Celo and Celo2, by number, as our layer has them.
INNER = [0, 1, 2, 3, 4, 5, 6, 7, 8, 13]
OUTER = [9, 11, 10, 12]
CONTROLLER = {
    "pooled": "linear_1",
    "own": "linear_2",
    "lstm.gates": "rnn.linear",
    "share": "rnn_to_controls",
    "step": "step_size",
}


def initial_state(theta, prefix):
    return {f"{prefix}initial_{part}": theta[f"lstm_init_state/{part}"][0] for part in ("hidden", "cell")}


def mixture(theta):
    """θ of VeLO and Celo."""
    values = {}
    parts = [theta[f"ff_mod_stack/mlp/w0__{index}"] for index in range(14)]
    values["networks.inner_0"] = torch.cat([parts[index] for index in INNER], 1).mT
    values["networks.outer_0"] = torch.cat([parts[index] for index in OUTER], 1).mT
    for layer in range(3):
        values[f"networks.bias_{layer}"] = theta[f"ff_mod_stack/mlp/b{layer}"]
    for layer in (1, 2):
        values[f"networks.weight_{layer}"] = theta[f"ff_mod_stack/mlp/w{layer}"].mT
    for ours, theirs in CONTROLLER.items():
        values[f"controller.{ours}.weight"] = theta[f"rnn_params/{theirs}/w"].mT
        values[f"controller.{ours}.bias"] = theta[f"rnn_params/{theirs}/b"]
    return values | {
        f"controller.lstm.initial_{part}": theta[f"lstm_init_state/{part}"][0] for part in ("hidden", "cell")
    }


def mixture_arguments(config):
    return {
        "lstm_hidden": config["lstm_hidden_size"],
        "copies": config["param_inits"],
        "hidden": config["ff_hidden_size"],
        "step_mult": config["step_mult"],
        "exp_mult": config["exp_mult"],
        "momentum_decays": config["momentum_decays"],
        "second_moment_decay": config["rms_decays"][0],
        "factored_decays": config["adafactor_decays"],
        "matrix": "stored",
    }


def celo(config, theta):
    return load(CeloRule(phase=config["train_phase"], **mixture_arguments(config)), mixture(theta))


def velo(config, theta):
    rule = VeLORule(
        **mixture_arguments(config),
        short_loss_horizon=config["use_bugged_loss_features"],
        forgets=config["use_bugged_next_lstm_state"],
    )
    return load(rule, mixture(theta))


def rnn_mlp(config, theta):
    rule = RNNMLPRule(
        config["lstm_hidden_size"],
        config["hidden_size"],
        config["step_multiplier"],
        config["magnitude_rate"],
        config["decays"],
        matrix="stored",
    )
    layers = turned(
        theta, "ffmod_params/", [(f"mlp.~.linear_{layer}/w", f"mlp.~.linear_{layer}/b") for layer in range(3)]
    )
    first = layers.pop("weight_0")
    layers |= {"inner_0": first[:, :23], "constant_0": first[:, 23:]}
    values = {f"network.{name}": value for name, value in layers.items()} | initial_state(theta, "lstm.")
    values["initial_from_network"] = theta["initial_from_mlp"]
    values["initial_from_lstm"] = theta["initial_from_lstm"]
    for ours, path in {
        "lstm.gates": "rnn_params/rnn.linear",
        "to_lstms": "rnn_to_in_params/rnn_to_in",
        "to_network": "rnn_to_ff_params/rnn_to_ff",
    }.items():
        values |= {f"{ours}.weight": theta[f"{path}/w"].mT, f"{ours}.bias": theta[f"{path}/b"]}
    return load(rule, values)


def nn_adam(config, theta):
    rule = NNAdamRule(
        config["initial_learning_rate"],
        config["initial_beta1"],
        config["initial_beta2"],
        config["initial_epsilon"],
        config["lstm_hidden_size"],
        config["output_scale"],
        config["decay_strength"],
    )
    values = initial_state(theta, "lstm.")
    for ours, path in {
        "lstm.gates": "rnn_params/rnn.linear",
        "controls": "rnn_to_controls_params/rnn_to_controls",
    }.items():
        values |= {f"{ours}.weight": theta[f"{path}/w"].mT, f"{ours}.bias": theta[f"{path}/b"]}
    values["initial"] = torch.stack([theta[f"per_layer_{name}"] for name in ("lr", "beta1", "beta2", "epsilon")])
    return load(rule, values)


BUILDERS = {
    "NNAdam": nn_adam,
    "RNNMLPLOpt": rnn_mlp,
    "HyperV2": velo,
    "Celo": celo,
    "AdafacMLPLOpt": adafac_mlp,
    "MLPLOpt": mlp,
}


def reference_rule(recording, dtype=torch.float64):
    """Our rule for a recorded run, with its θ."""
    return BUILDERS[recording.config["cls"]](recording.config, recording.theta()).to(dtype)
