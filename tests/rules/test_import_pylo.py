"""Folders as PyLO's modules save them, made of recorded θ by its names, become the rules with that θ."""

import json
import math
import os

import pytest
import torch
from golden_runs import LEFT_OUT, Recording, recording
from reference_rules import reference_arguments, reference_rule
from safetensors.torch import save_file

from lightning_lopt import AdafacMLPRule, Celo2BaseRule, Celo2Rule, MuAdafacMLPRule, load_card, load_rule
from lightning_lopt.io import RuleFileError, convert_rule, import_rule


def opened(name):
    path = recording(name)
    if not path.exists():
        pytest.skip(LEFT_OUT)
    return Recording(path)


def saved(folder, tensors, config=None, card=None):
    os.makedirs(folder)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def meta_mlp(theta):
    """MetaMLP: three torch.nn.Linear."""
    tensors = {}
    for layer, name in enumerate(("input", "linear_0", "output")):
        tensors[f"network.{name}.weight"] = theta[f"nn/mlp/w{layer}"].T
        tensors[f"network.{name}.bias"] = theta[f"nn/mlp/b{layer}"]
    return tensors


def celo2_mlp(theta):
    """CELO2MLP: weights (inputs, outputs), the first in fourteen parts."""
    tensors = {f"w0.{part}": theta[f"ff_mod_stack/mlp/w0__{part}"] for part in range(14)}
    for layer in (1, 2):
        tensors[f"dense_w.{layer - 1}"] = theta[f"ff_mod_stack/mlp/w{layer}"]
        tensors[f"dense_b.{layer - 1}"] = theta[f"ff_mod_stack/mlp/b{layer}"]
    return tensors | {"b0": theta["ff_mod_stack/mlp/b0"]}


def velo_mlp(theta):
    """VeLOMLP: the bank of networks, and beside it the mixture of the last step, which nobody needs."""
    stack = {name.rsplit("/", 1)[1]: value for name, value in theta.items() if name.startswith("ff_mod_stack")}
    first = torch.cat([stack[f"w0__{part}"] for part in range(14)], 1).mT
    tensors = {
        "input_weights_": first,
        "input_bias_": stack["b0"],
        "hidden_weights_.0": stack["w1"].mT,
        "hidden_bias_.0": stack["b1"],
        "output_weights_": stack["w2"].mT,
        "output_bias_": stack["b2"],
    }
    return tensors | {name.replace("_.", ".").removesuffix("_"): 7 + value[0] for name, value in tensors.items()}


def velo_rnn(theta):
    layers = {
        "mix_layer1": "linear",
        "mix_layer2": "linear_1",
        "final_mix_layer": "linear_2",
        "lstm.linear": "rnn.linear",
        "rnn_to_controls": "rnn_to_controls",
        "step_size": "step_size",
    }
    tensors = {f"lstm_init_state.{i}": theta[f"lstm_init_state/{part}"] for i, part in enumerate(("hidden", "cell"))}
    for name, path in layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            theta[f"rnn_params/{path}/w"].T,
            theta[f"rnn_params/{path}/b"],
        )
    return tensors


def same_theta(one, other, ignored=()):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items() if name not in ignored)


@pytest.mark.parametrize("name", ["adafac_mlp_h4", "adafac_mlp_h32"])
def test_networks_of_mu_adafac_and_elo(name, tmp_path):
    record = opened(name)
    theta, hidden = record.theta(), record.config["hidden_size"]
    config = {"input_size": 39, "hidden_size": hidden, "hidden_layers": 1}
    folder = saved(tmp_path / "folder", meta_mlp(theta), config)
    expected = reference_rule(record, torch.float32)
    offsets = ("momentum_offsets", "second_moment_offset", "factored_offsets")
    for kind, build in (("adafac_mlp", AdafacMLPRule), ("mu_adafac_mlp", MuAdafacMLPRule), ("elo", AdafacMLPRule)):
        rule = import_rule(folder, rule=kind)
        assert type(rule) is build
        assert rule.hidden == hidden
        assert rule.step_mult == (0.001 if kind == "elo" else 0.01)
        assert same_theta(rule, expected, offsets)
        # The decays that PyLO's optimizers end up with: ELO's are as they come, µLO's were learned.
        rates = rule._rates(torch.zeros((), dtype=torch.float64))
        decays = 1 - torch.cat([rates.momentum, rates.second_moment[None], rates.factored]).detach()
        wanted = [0.9, 0.99, 0.999, 0.999, 0.9, 0.99, 0.999]
        if kind != "elo":
            offsets_of_mu = [0.15216392, 0.14245212, 0.06812963, 0.01079706, 0.18621896, -0.10864615, -0.06185547]
            wanted = [1 - (1 - start) * math.exp(10 * x) for start, x in zip(wanted, offsets_of_mu, strict=True)]
        assert decays.tolist() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(RuleFileError, match="fits the rules adafac_mlp and mu_adafac_mlp and elo; name one of them"):
        import_rule(folder)


@pytest.mark.parametrize("name", ["celo2base", "celo2_default"])
def test_celo2(name, tmp_path):
    record = opened(name)
    folder = saved(tmp_path / "folder", celo2_mlp(record.theta()), {"activation": "relu", "hidden_layers": 2})
    expected = reference_rule(record, torch.float32)
    for kind, build in (("celo2", Celo2Rule), ("celo2_base", Celo2BaseRule), ("elo_celo2", Celo2Rule)):
        rule = import_rule(folder, rule=kind)
        assert type(rule) is build
        assert same_theta(rule, expected)
        assert rule.orthogonalise is (kind != "celo2_base")
        assert rule.weight_decay == (0.1 if kind == "elo_celo2" else 0.0)
    assert rule.adam_betas == [0.9, 0.95]
    assert rule.adam_bias_correction
    (folder / "config.json").write_text('{"activation": "tanh"}')
    with pytest.raises(RuleFileError, match="says activation='tanh', but only 'relu' can be imported"):
        import_rule(folder, rule="celo2")


@pytest.mark.parametrize("name", ["velo_small", "velo_release_size"])
def test_velo_from_its_two_folders(name, tmp_path):
    record = opened(name)
    mlp = saved(tmp_path / "mlp", velo_mlp(record.theta()), {"param_inits": record.config["param_inits"]})
    rnn = saved(
        tmp_path / "rnn", velo_rnn(record.theta()), {"mix_layers": True}, "---\nlicense: apache-2.0\n---\n# RNN"
    )
    arguments = reference_arguments(record.config)
    for order in ((rnn, mlp), (mlp, rnn)):
        rule = import_rule(*order, arguments=arguments)
        assert rule.config == reference_rule(record).config
        assert same_theta(rule, reference_rule(record, torch.float32))
    written = convert_rule(rnn, mlp, to=tmp_path / "ours", arguments=arguments)
    assert same_theta(load_rule(written), rule)
    assert "license: unknown" in load_card(written)  # one of the two folders names none
    with pytest.raises(
        RuleFileError, match=r"does not contain the rule velo .*it lacks 'hidden_bias.0' and differs in"
    ):
        import_rule(rnn)
    with pytest.raises(RuleFileError, match=r"both have 'final_mix_layer.bias'; give different folders"):
        import_rule(rnn, rnn)
