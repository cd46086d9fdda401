"""Our rules with the reference's θ: for each of its classes, where its arrays go."""

import torch

from lightning_lopt import AdafacMLPRule, MLPRule

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


BUILDERS = {"AdafacMLPLOpt": adafac_mlp, "MLPLOpt": mlp}


def reference_rule(recording, dtype=torch.float64):
    """Our rule for a recorded run, with its θ."""
    return BUILDERS[recording.config["cls"]](recording.config, recording.theta()).to(dtype)
