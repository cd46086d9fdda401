"""The rules inside the package: each loads, makes steps, and has a card that says where it comes from."""

from __future__ import annotations

import json
import shutil
from importlib import metadata

import pytest
import torch
from rule_folders import same

from lightning_lopt import LearnedOptimizer, ResidualRule, available_rules, load_rule, save_rule
from lightning_lopt.io import RuleFileError, load_card
from lightning_lopt.pretrained import ROOT


def test_base_is_there():
    assert "base" in available_rules()
    assert available_rules() == sorted(available_rules())
    assert isinstance(load_rule("base"), ResidualRule)
    assert load_card("base").startswith("---\nlicense: ")


def test_every_folder_is_a_rule():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(available_rules())


@pytest.mark.parametrize("name", available_rules())
def test_rule_loads_by_name_and_by_folder(name, tmp_path):
    rule = load_rule(name)
    assert same(rule, load_rule(ROOT / name))
    assert sorted(path.name for path in (ROOT / name).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((ROOT / name / "config.json").read_text())
    again = save_rule(rule, tmp_path / name, meta_training=config.get("meta_training"))
    assert (again / "model.safetensors").read_bytes() == (ROOT / name / "model.safetensors").read_bytes()
    assert json.loads((again / "config.json").read_text())["config"] == config["config"]


@pytest.mark.parametrize("name", available_rules())
def test_card_names_recipe_cost_and_results(name):
    card = load_card(name)
    for heading in (f"# {name}", "## Recipe", "## Cost of meta-training", "## Results", "## Limitations", "## Licence"):
        assert f"\n{heading}\n" in card


@pytest.mark.parametrize("name", available_rules())
def test_rule_lowers_a_loss(name):
    param = torch.nn.Parameter(torch.full((4, 3), 2.0))
    optimizer = LearnedOptimizer([param], name, total_steps=30)
    losses = []
    for _ in range(30):
        loss = param.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
        losses.append(loss.item())
    assert param.isfinite().all()
    assert losses[-1] < losses[0]


def test_a_copy_of_an_embedded_folder_is_a_rule_of_its_own(tmp_path):
    shutil.copytree(ROOT / "base", tmp_path / "copy")
    assert same(load_rule(tmp_path / "copy"), load_rule("base"))


def test_the_error_names_what_there_is():
    with pytest.raises(
        RuleFileError, match=r"^'bsae' is neither a folder nor an embedded rule; use a folder or one of"
    ):
        load_rule("bsae")


@pytest.mark.parametrize("name", ["velo", "VeLO"])
def test_the_error_says_how_to_get_weights_that_do_not_ship(name):
    with pytest.raises(
        RuleFileError, match=r"^rule 'velo' has no embedded weights \(these have: base, celo2\); .* convert "
    ):
        load_rule(name)


def test_the_error_says_that_hand_designed_rules_need_no_weights():
    with pytest.raises(RuleFileError, match=r"^rule 'adam' has no embedded weights and needs none; pass AdamRule\(\)"):
        load_rule("adam")


def test_half_a_folder_is_not_listed(tmp_path, monkeypatch):
    for name in ("b", "a"):
        shutil.copytree(ROOT / "base", tmp_path / name)
    (tmp_path / "half").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("lightning_lopt.pretrained.ROOT", tmp_path)
    assert available_rules() == ["a", "b"]


def test_hub_library_is_no_requirement():
    needed = [line for line in metadata.requires("lightning-lopt") or [] if "extra ==" not in line]
    assert not any(line.startswith("huggingface") for line in needed)
