"""What is printed commands no terminal, wherever it comes from."""

import io
import json
import sys
from pathlib import Path

import pytest

from lightning_lopt import AdamRule, save_rule
from lightning_lopt.cli import main
from lightning_lopt.meta.command import CONFIGS_ARE_CODE
from lightning_lopt.terminal import printable, say

HOSTILE = {
    "clear screen": "\x1b[2J\x1b[H",
    "clipboard (OSC 52)": "\x1b]52;c;ZXZpbA==\x07",
    "C1 control": "\x9b2J",
    "title": "\x1b]0;evil\x1b\\",
    "backspace": "safe\x08\x08\x08\x08evil",
    "carriage return": "evil\rsafe",
    "bidirectional override": "\u202egpj.exe\u2066x\u2069",
    "zero width": "a\u200bb\ufeff",
    "surrogate": "\ud800",
    "line separator": "a\u2028b\u0085c",
}
EVERYTHING = "".join(HOSTILE.values())
every_sequence = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def harmless(text):
    return all(character.isprintable() or character in "\n\t" for character in text)


@every_sequence
def test_printable_leaves_no_command(text):
    assert harmless(printable(text))
    assert harmless(printable(f"before{text}after\n"))


def test_ordinary_text_stays_as_it_is():
    text = "# σ, θ, 学習, é, 🙂\n\n\t| a | b |\n"
    assert printable(text) == text
    assert printable("a\r\nb\u00a0c") == "a \nb c"


def test_what_an_encoding_lacks_is_replaced(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("σ of θ")
    assert stream.buffer.getvalue() == b"? of ?\n"


def test_info_of_a_foreign_card(tmp_path, capsys):
    folder = save_rule(AdamRule(), tmp_path / "rule", card="# title\n")
    hostile = f"# {EVERYTHING}\n\nlast line\n".encode(errors="surrogatepass").replace(b"\xed\xa0\x80", b"")
    (folder / "README.md").write_bytes(hostile)
    assert main(["info", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert harmless(printed)
    assert "last line" in printed


@pytest.mark.parametrize("command", ["info", "evaluate", "convert"])
def test_errors_with_hostile_names(command, tmp_path, capsys, monkeypatch):
    (tmp_path / "started_here").mkdir()
    monkeypatch.chdir(tmp_path / "started_here")
    folder = save_rule(AdamRule(), tmp_path / "rule")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rule": EVERYTHING}))
    for source in (str(folder), str(tmp_path / "\x1b[2J\u202e")):
        arguments = [command, source] + ([str(tmp_path / "out")] if command == "convert" else [])
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.splitlines()[-1].startswith("lightning-lopt: ")
        assert printed.count("lightning-lopt: ") == 1
        assert harmless(printed)
    assert not list(Path.cwd().iterdir()), "a command that could not read its rule left something behind"


def test_meta_train_says_that_a_config_is_code(capsys):
    pytest.importorskip("jsonargparse")
    with pytest.raises(SystemExit) as stopped:
        main(["meta-train", "--help"])
    assert stopped.value.code == 0
    assert " ".join(capsys.readouterr().out.split()).endswith(CONFIGS_ARE_CODE)
    assert main(["--help"]) == 0
    assert "a config is code" in capsys.readouterr().out
