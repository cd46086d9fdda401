"""Bounded reads, strict JSON and short messages, one function at a time."""

from __future__ import annotations

import json
import pickle
import time
import tracemalloc

import pytest

from lightning_lopt.errors import cause, show
from lightning_lopt.io import RuleFileError
from lightning_lopt.io.files import CONFIG, LIMITS, RuleFile, parse_json_object, read_file


def test_json_values_are_those_of_the_standard_library():
    value = {"a": [1, -2.5e-3, True, None, "é\n", {"b": {}}], "": 12345678901234567890}
    assert parse_json_object(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"\xff{}", "byte 0 is wrong"),
        (b"[1]", "but holds [1]"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        (b'{"a": NaN}', "'NaN' is not a finite number"),
        (b'{"a": -Infinity}', "'-Infinity' is not a finite number"),
        (b'{"a": 1e999}', "'1e999' is not a finite number"),
        (b'{"a": ' + b"9" * 21 + b"}", "more than 20 characters"),
        (b'{"a": ' + b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_other_json_is_refused(text, wrong):
    with pytest.raises(RuleFileError, match=r"^x ") as caught:
        parse_json_object(text, "x")
    assert wrong in str(caught.value)
    assert len(str(caught.value)) < 400


def test_json_of_a_mebibyte_is_read_in_linear_time_whatever_is_in_it():
    """A search for the key that occurs twice must not compare all pairs, nor a long number be converted."""
    keys = [f'"{number:x}": 0' for number in range(90_000)]
    start = time.process_time()
    for text in ("{" + ", ".join([*keys, keys[-1]]) + "}", '{"a": ' + "9" * 1_000_000 + "}"):
        with pytest.raises(RuleFileError):
            parse_json_object(text.encode(), "x")
    assert parse_json_object(b'{"a": 0.' + b"9" * 1_000_000 + b"}", "x") == {"a": 1.0}
    assert time.process_time() - start < 2.0


def test_shown_values_are_short_whatever_their_structure():
    wide: object = "x" * 1000
    for _ in range(6):
        wide = [wide] * 8
    for value in (wide, {str(key): {str(key): "y" * 100} for key in range(9)}, "z" * 10**6, 10**4000, b"\0" * 999):
        assert len(show(value)) <= 163
    assert show("a\nb\x1b[31m\u202e\ud800") == r"'a\nb\x1b[31m\u202e\ud800'"
    assert cause(ValueError("one.\n two.")) == "one; two"
    assert cause(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_message_is_one_printable_line():
    error = RuleFileError("a\n  b\t\x1b[31mc\u2028d\ud800.")
    assert str(error) == "a b ?[31mc d?."
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # from a worker process to its parent


def test_reading_reserves_no_more_than_the_file_has(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    file = RuleFile("model.safetensors", "label", tmp_path / "model.safetensors", tmp_path)
    tracemalloc.start()
    assert read_file(file) == b"abc"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_file_at_the_limit_is_read_and_one_above_it_is_not(tmp_path):
    path = tmp_path / CONFIG
    file = RuleFile(CONFIG, "label", path, tmp_path)
    path.write_bytes(b" " * LIMITS[CONFIG])
    assert len(read_file(file)) == LIMITS[CONFIG]
    path.write_bytes(b" " * (LIMITS[CONFIG] + 1))
    with pytest.raises(
        RuleFileError, match=r"^label is too large, 1048577 bytes where at most 1048576 are read; take "
    ):
        read_file(file)
