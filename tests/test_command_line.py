"""The command lightning-lopt, run in this process."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

import lightning_lopt
from lightning_lopt import AdamRule, MetaTrainer, TaskDataModule, load_card, load_rule, save_rule
from lightning_lopt.cli import COMMANDS, main
from lightning_lopt.command_line import CommandError, CommandParser
from lightning_lopt.evaluation.benchmark import rule_memory
from lightning_lopt.io.card import key_numbers_of
from lightning_lopt.meta import command as meta_command
from lightning_lopt.rules.contract.footprint import footprint

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


def test_info_begins_with_key_numbers(capsys, monkeypatch):
    monkeypatch.setattr(rule_memory, "rule_memory", lambda rule: {"float32": (28.0, 4.0)})
    assert main(["info", "base"]) == 0
    printed = capsys.readouterr().out
    keys = printed.split("\n\n")[1]
    for words in ("- constants: 71", "bytes per parameter", "a step of the optimizer", "suite `small`", "it loses"):
        assert words in keys
    assert "meta-parameters: 71" in printed
    assert "reads: gradients, the horizon" in printed
    assert printed.index("- constants") < printed.index("class: ResidualRule(") < printed.index("# base")
    assert printed.count("- constants: 71") == 1
    assert "license:" not in printed
    assert "char_transformer (" in printed
    assert "state 28.0, and 4.0 more at the peak of a step (float32 state)" in printed


def test_key_numbers_of_base_are_those_of_its_results_and_its_rule():
    keys, card = key_numbers_of(load_card("base"))
    rule = load_rule("base")
    assert f"constants: {sum(value.numel() for value in rule.parameters())}," in keys
    assert f"state: {footprint(rule, (1024, 1024)).state_bytes:.0f} bytes" in keys
    results = " ".join(card.split())
    form = r"lower on (\d+) of 14.*?on (\d+) of 14.*?speed-up of ([\d.]+) in steps, ([\d.]+) in seconds"
    numbers = re.findall(form, " ".join(keys.split()))
    assert len(numbers) == 2
    cells = r"(\d+) of 14 \| (\d+) of 14[^|]*\| ([\d.]+) \([^|]*\) \| ([\d.]+) \|"
    assert numbers == [re.findall(rf"\| tuned {name} \| 20 \| {cells}", results)[0] for name in ("AdamW", "Muon")]


def test_info_of_a_rule_without_key_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rule_memory, "rule_memory", lambda rule: {})
    folder = save_rule(AdamRule(), tmp_path / "rule")
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{folder}: the rule 'adam'\n\n- results: the card of this rule has no key numbers\n")
    assert "meta-parameters: " in printed


def test_memory_of_a_rule_is_measured():
    measured = rule_memory.rule_memory(AdamRule(), "mlp")
    assert measured["float32"][0] == pytest.approx(8.0, rel=0.05)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-lopt {lightning_lopt.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_an_example_that_has_the_form_of_a_call(command, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: " in printed
    if command == "meta-train":  # its file is relative to the checkout
        example = meta_command.EXAMPLE
        assert " ".join(printed.split()).count(example) == 1
        monkeypatch.chdir(Path(__file__).parents[1])
        example += " --print_config"
    else:
        example = printed.splitlines()[-1]
    assert example.startswith(f"example: lightning-lopt {command} ")
    words = shlex.split(example.removeprefix("example: lightning-lopt "))
    # The arguments are read, and then nothing is done.
    monkeypatch.setattr(CommandParser, "parse_args", lambda parser, given: read_and_stop(parser, given))
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code in (0, "read")


def read_and_stop(parser, given):
    argparse.ArgumentParser.parse_args(parser, given)
    raise SystemExit("read")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "base", "--seeds", "0"], "argument --seeds: must be a whole number of at least 1, got '0'"),
        (["benchmark", "cnn", "--threads", "x"], "argument --threads: must be a whole number of at least 1, got 'x'"),
        (["assess", "mine.py:Model"], "the following arguments are required: --total-steps"),
        (["meta-train", "--config", "nowhere.yaml"], "File does not exist"),
        (["meta-train", "--model.speed", "1"], "--model.speed"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (sentence,) = [line for line in printed.err.splitlines() if "loading PyTorch" not in line]
    assert sentence.startswith(f"lightning-lopt {arguments[0]}: ")
    assert says in sentence
    assert sentence.endswith(f"'lightning-lopt {arguments[0]} --help' shows all arguments.")


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["meta-train"], "jsonargparse", "cli"),
        (["evaluate", "base", "--suite", "tiny"], "sklearn.datasets", "examples"),
        (["info", "hf://owner/rule"], "huggingface_hub", "hub"),
    ],
)
def test_a_missing_extra_is_one_sentence_that_names_it(command, missing, extra, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # importing it raises ImportError
    assert main(command) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    (said,) = [line for line in said if line.startswith("lightning-lopt: ")]
    assert f'run pip install -e ".[{extra}]" in the checkout of lightning_lopt' in said


def test_what_a_command_raises(capsys, monkeypatch):
    def raising(error):
        def command(arguments):
            raise error

        return command

    cases = [
        (ValueError("there is no\nsuch thing; use another."), 2, "there is no such thing; use another."),
        (ImportError("package x is missing."), 1, "package x is missing."),
        (
            FileNotFoundError(2, "No such file", "a"),
            1,
            "a file could not be read or written ([Errno 2] No such file: 'a').",
        ),
        (CommandError("killed; run it again.", 1), 1, "killed; run it again."),
        (KeyboardInterrupt(), 130, "stopped."),
    ]
    for error, status, sentence in cases:
        monkeypatch.setitem(COMMANDS, "info", raising(error))
        assert main(["info"]) == status
        assert capsys.readouterr().err == f"lightning-lopt: {sentence}\n"
        with pytest.raises(type(error)):
            main(["--traceback", "info"])
    monkeypatch.setitem(COMMANDS, "info", raising(ZeroDivisionError()))  # an error of the package itself
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_meta_training_shows_outer_steps_from_the_start(tmp_path, capsys):
    path = Path(config(tmp_path))
    path.write_text(path.read_text().replace("enable_progress_bar: false", "enable_model_summary: false"))
    assert main(["meta-train", "--config", str(path)]) == 0
    printed = capsys.readouterr().err.splitlines()
    shown = [line for line in printed if line.startswith("meta-training a ResidualRule")]
    assert printed[0] == "lightning-lopt meta-train: loading PyTorch and Lightning"
    assert shown[0].startswith("meta-training a ResidualRule 0/4 outer steps")
    assert "4/4 outer steps" in shown[-1]
    assert "meta_loss" in shown[-1]


def test_bad_input_to_a_meta_training(tmp_path, capsys):
    assert main(["meta-train", "--config", config(tmp_path), "--model.horizons", "[5, 1]"]) == 2
    assert "lightning-lopt: horizons must be (shortest, longest)" in capsys.readouterr().err
    assert main(["meta-train", "--config", config(tmp_path), "--ckpt_path", config(tmp_path)]) == 2
    assert "lightning-lopt: --ckpt_path names no checkpoint of a meta-training" in capsys.readouterr().err


def test_what_it_says_to_a_beginner(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    assert main(["info", "nowhere"]) == 2
    assert "one of: base" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["info"])
    assert stopped.value.code == 2
