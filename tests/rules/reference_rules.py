"""Our rules with the reference's θ, by the tables that import its files."""

import torch

from lightning_lopt.io.importers import FLAX_KINDS

KINDS = {
    "NNAdam": "nn_adam",
    "RNNMLPLOpt": "rnn_mlp",
    "HyperV2": "velo",
    "Celo": "celo",
    "Celo2": "celo2",
    "Celo2Base": "celo2_base",
    "AdafacMLPLOpt": "adafac_mlp",
    "MLPLOpt": "mlp",
}

# Arguments of ours by what the reference calls them, where they are not those of the network's size.
ARGUMENTS = {
    "step_mult": "step_mult",
    "step_multiplier": "step_mult",
    "exp_mult": "exp_mult",
    "magnitude_rate": "exp_mult",
    "rmsmult": "rms_mult",
    "weight_decay": "weight_decay",
    "orthogonalize": "orthogonalise",
    "param_scale_mult": "param_scale_mult",
    "bias_correction": "bias_correction",
    "momentum_decays": "momentum_decays",
    "initial_momentum_decays": "momentum_decays",
    "adafactor_decays": "factored_decays",
    "initial_adafactor_decays": "factored_decays",
    "decays": "decays",
    "train_phase": "phase",
    "use_bugged_loss_features": "short_loss_horizon",
    "use_bugged_next_lstm_state": "forgets",
    "mult_1d": "adam_mult",
    "adam_bias_correction": "adam_bias_correction",
    "initial_learning_rate": "lr",
    "initial_beta1": "beta1",
    "initial_beta2": "beta2",
    "initial_epsilon": "eps",
    "output_scale": "output_scale",
    "decay_strength": "decay",
}
STORED = {"MLPLOpt": {}, "NNAdam": {}, "Celo2": {"matrix": "last_two"}, "Celo2Base": {"matrix": "last_two"}}


def reference_arguments(config):
    """Arguments for our rule, tensors being stored as in the reference, without the sizes that θ has."""
    found = {ours: config[theirs] for theirs, ours in ARGUMENTS.items() if theirs in config}
    for theirs in ("rms_decays", "initial_rms_decays"):
        if theirs in config:
            found["second_moment_decay"] = config[theirs][0]
    if "adam_b1" in config:
        found["adam_betas"] = [config["adam_b1"], config["adam_b2"]]
    return found | STORED.get(config["cls"], {"matrix": "stored"})


def tree_path(name):
    """Path in the reference's tree of an array as recordings call it, its keys joined by "/"."""
    return "/".join("~" if part == "mlp" else part.replace(".", "/") for part in name.split("/"))


def reference_rule(recording, dtype=torch.float64):
    """Our rule for a recorded run, with its θ."""
    kind = FLAX_KINDS[KINDS[recording.config["cls"]]]
    theta = {tree_path(name): value for name, value in recording.theta().items()}
    sizes = kind.format.read_sizes({path: tuple(value.shape) for path, value in theta.items()})
    rule = kind.rule(**sizes, **reference_arguments(recording.config))
    rule.load_state_dict(kind.format.values(theta))
    return rule.to(dtype)
