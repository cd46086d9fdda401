"""The command convert: folders in our format whose cards keep origin and licence; sources on the Hub."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
import torch
from rule_folders import read_config, same
from safetensors.torch import save_file
from test_hub import COMMIT, Hub

from lightning_lopt import Celo2BaseRule, load_card, load_rule
from lightning_lopt.cli import main
from lightning_lopt.io import RuleFileError, convert_rule, import_rule, load_meta_training
from lightning_lopt.io.importers.pylo import CELO2_MLP


@pytest.fixture
def theirs(tmp_path):
    """A folder of PyLO with Celo2's network and a card."""
    folder, draws = tmp_path / "theirs", torch.Generator().manual_seed(0)
    folder.mkdir()
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in CELO2_MLP.shapes(hidden=4).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4, "hidden_layers": 2, "activation": "relu"}))
    (folder / "README.md").write_text('---\ntags:\n- x\nlicense: "apache-2.0"\n---\n\n# A rule\n')
    return folder


def test_command_writes_what_it_imported(theirs, tmp_path, capsys):
    ours = tmp_path / "ours"
    assert main(["convert", str(theirs), str(ours), "--rule", "celo2", "--set", "step_mult=0.5"]) == 0
    assert capsys.readouterr().out == f"wrote {ours}; load it with load_rule({str(ours)!r})\n"
    rule = load_rule(ours)
    assert same(rule, import_rule(theirs, rule="celo2", arguments={"step_mult": 0.5}))
    assert rule.step_mult == 0.5
    digest = hashlib.sha256((theirs / "model.safetensors").read_bytes()).hexdigest()
    card = load_card(ours)
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert card.endswith("## Licence\n\nApache-2.0\n")
    assert f"- `{theirs}`, SHA-256 `{digest}`" in card
    assert f"lightning-lopt convert {theirs} FOLDER --rule celo2 --set step_mult=0.5" in card
    assert "PyLO's Adam adds ε to the root" in card
    origin = {"imported_from": [{"source": str(theirs), "sha256": digest}], "licence": "Apache-2.0"}
    assert load_meta_training(ours) == read_config(ours)["meta_training"] == origin
    assert main(["info", str(ours)]) == 0
    assert "meta-parameters: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("card", "option", "licence", "shown"),
    [
        (None, None, "LicenseRef-unknown", "unknown"),
        ("# No front matter\nlicense: mit\n", None, "LicenseRef-unknown", "unknown"),
        ("---\nlicense: other\n---\n", None, "LicenseRef-unknown", "unknown"),
        ("---\nlicense: [mit]\n---\n", None, "LicenseRef-unknown", "unknown"),
        ("---\nlicense: mit\n---\n", None, "MIT", "mit"),
        ("---\r\nlicense: bsd-3-clause\r\n---\r\n", None, "BSD-3-Clause", "bsd-3-clause"),
        ("---\nlicense: mit\n---\n", "CC-BY-4.0", "CC-BY-4.0", "cc-by-4.0"),
        (None, "MIT", "MIT", "mit"),
    ],
)
def test_licences(card, option, licence, shown, theirs, tmp_path):
    (theirs / "README.md").unlink()
    if card is not None:
        (theirs / "README.md").write_bytes(card.encode())
    written = load_card(convert_rule(theirs, to=tmp_path / "ours", rule="celo2_base", licence=option))
    assert f"---\nlicense: {shown}\n" in written
    assert written.endswith(f"## Licence\n\n{licence}\n")
    assert ("The licence of these weights is unknown: ask their authors" in written) is (shown == "unknown")


def test_refusals_are_one_line_and_status_2(theirs, tmp_path, capsys):
    ours = str(tmp_path / "ours")
    cases = {
        "fits the rules celo2 and celo2_base and elo_celo2; name one of them with --rule.": [],
        "licence must be an SPDX identifier such as": ["--rule", "celo2", "--licence", "my own"],
        "the unknown argument 'lr'": ["--rule", "celo2", "--set", "lr=1"],
        "--set 'step_mult' is not of the form NAME=JSON": ["--rule", "celo2", "--set", "step_mult"],
        "--set step_mult is not valid JSON": ["--rule", "celo2", "--set", "step_mult=one"],
    }
    for wrong, options in cases.items():
        assert main(["convert", str(theirs), ours, *options]) == 2
        message = capsys.readouterr().err
        assert message.startswith("lightning-lopt: ")
        assert wrong in message
        assert message.count("\n") == 1
    assert main(["convert", str(theirs), str(theirs), "--rule", "celo2"]) == 2
    assert "is the source of the conversion; choose another folder to write." in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_odd_paths_stay_on_one_line_of_the_card(theirs, tmp_path):
    odd = theirs.rename(tmp_path / "a`b\n# c")
    card = load_card(convert_rule(odd, to=tmp_path / "ours", rule="celo2_base"))
    assert f"- `{tmp_path}/a?b?# c`, SHA-256" in card
    assert "\n# c" not in card


@pytest.fixture
def hub(theirs, tmp_path, monkeypatch):
    module = Hub(theirs, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_the_card_keeps_the_commit_on_the_hub(hub, theirs, tmp_path):
    written = convert_rule("hf://owner/celo2@main", to=tmp_path / "ours", rule="celo2_base")
    assert isinstance(load_rule(written), Celo2BaseRule)
    assert load_meta_training(written)["imported_from"][0]["source"] == f"hf://owner/celo2@{COMMIT}"
    assert f"lightning-lopt convert hf://owner/celo2@{COMMIT} FOLDER" in load_card(written)
    assert "license: apache-2.0" in load_card(written)
    names = ("model.safetensors", "config.json", "README.md")
    assert hub.calls == [("info", "owner/celo2", "main"), *((name, "owner/celo2", COMMIT) for name in names)]
    hub.online = False
    assert same(import_rule("hf://owner/celo2@main", rule="celo2_base"), load_rule(written))


def test_what_the_hub_lacks(hub, theirs):
    hub.sizes = {"README.md": 3}
    with pytest.raises(RuleFileError, match=r"hf://owner/x has none of theta.state, params, model.safetensors"):
        import_rule("hf://owner/x")
    hub.sizes = {"theta.state": 2**40}
    with pytest.raises(RuleFileError, match=r"theta.state is too large: it has \d+ bytes, and the limit is 67108864"):
        import_rule("hf://owner/x")
    assert {call[0] for call in hub.calls} == {"info"}
    hub.online = False
    with pytest.raises(RuleFileError, match=r"could not be downloaded \(the Hub cannot be reached"):
        import_rule("hf://owner/x")
