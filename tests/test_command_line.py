"""The command lightning-lopt, run in this process."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_lopt import MetaTrainer, TaskDataModule
from lightning_lopt.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
TINY = """
model:
  rule:
    class_path: lightning_lopt.ResidualRule
    init_args: {controller: false}
  estimator:
    class_path: lightning_lopt.PES
    init_args: {truncation: 4, pairs: 1, meta_loss: {scale: log, split: both}}
  groups: 1
  horizons: [10, 30]
  frozen: [constants]
data: {families: teacher}
trainer:
  max_steps: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks:
    class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {dirpath: FOLDER, every_n_train_steps: 2, save_top_k: -1, filename: "{step}"}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """LightningCLI writes the config of a run without a logger into the working directory."""
    monkeypatch.chdir(tmp_path)


def config(folder):
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("FOLDER", str(folder)))
    return str(path)


def theta(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_meta_train_and_resume(tmp_path):
    assert main(["meta-train", "--config", config(tmp_path)]) == 0
    straight = theta(tmp_path / "step=4.ckpt")
    (tmp_path / "step=4.ckpt").unlink()
    assert main(["meta-train", "--config", config(tmp_path), "--ckpt_path", str(tmp_path / "step=2.ckpt")]) == 0
    resumed = theta(tmp_path / "step=4.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    before = theta(tmp_path / "step=2.ckpt")
    moved = {name.split(".")[1] for name, value in straight.items() if not torch.equal(value, before[name])}
    assert moved == {"direction"}  # constants are frozen


def test_print_config_and_overrides(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["meta-train", "--config", config(tmp_path), "--model.lr", "0.5", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["lr"] == 0.5
    assert printed["model"]["estimator"]["class_path"].endswith("PES")


def test_unknown_options_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["meta-train", "--config", config(tmp_path), "--model.speed", "1"])
    assert stopped.value.code == 2
    assert "speed" in capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_ready_configs_build_what_they_say(path):
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.callbacks", "null"]
    cli = LightningCLI(
        MetaTrainer, TaskDataModule, args=["--config", str(path), *cpu, "--trainer.logger", "false"], run=False
    )
    written = yaml.safe_load(path.read_text())
    assert cli.trainer.max_steps == written["trainer"]["max_steps"]
    assert cli.model.groups == written["model"]["groups"]
    assert cli.model.estimator.pairs == written["model"]["estimator"]["init_args"]["pairs"]
    assert cli.datamodule.mixture.sample(0).name


def test_info_says_what_a_rule_is(capsys):
    assert main(["info", "base"]) == 0
    printed = capsys.readouterr().out
    assert "# base" in printed
    assert "meta-parameters: 69" in printed
    assert "reads: gradients, the horizon" in printed
    assert re.search(
        r"char_transformer .*: state [\d.]+ and peak of a step beyond it [\d.]+ \(float32 state\)", printed
    )


def test_what_it_says_to_a_beginner(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().out
    assert main(["info", "nowhere"]) == 1
    assert "one of: base" in capsys.readouterr().out
    assert main(["info"]) == 2
