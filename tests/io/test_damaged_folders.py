"""Damaged and hostile folders: each is refused with a sentence, at once, in little memory, and runs nothing."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import socket
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rule_folders import (
    CARD,
    CONFIG,
    WEIGHTS,
    canary_pickle,
    edit_arguments,
    edit_config,
    pack,
    read_config,
    unpack,
    write_config,
    write_weights,
)
from torch import nn

from lightning_lopt import AdamRule, UpdateRule, load_rule, save_rule
from lightning_lopt.io import RuleFileError, load_card
from lightning_lopt.rules import RULES

Damage = Callable[[Path], object]
FIRST = "constants.log_decay_power"
MIB = 2**20


def header(edit: Callable[[dict], object]) -> Damage:
    """Damage of the header of the weights by ``edit``, which changes it in place."""

    def damage(folder):
        entries, body = unpack(folder)
        edit(entries)
        write_weights(folder, pack(entries, body))

    return damage


def entry(**values: object) -> Damage:
    """Damage of the header's entry for one tensor."""
    return header(lambda entries: entries[FIRST].update(values))


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """An intact file of other tensors than the rule's."""
    from safetensors.torch import load, save

    def damage(folder):
        found = load((folder / WEIGHTS).read_bytes())
        edit(found)
        write_weights(folder, save(found))

    return damage


def weights(make: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: write_weights(folder, make((folder / WEIGHTS).read_bytes()))


def config_text(make: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / CONFIG).write_bytes(make((folder / CONFIG).read_bytes()))


def in_place_of(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else where the file ``name`` was."""

    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def torch_zip(folder: Path) -> None:
    torch.save({"theta": torch.zeros(3), "canary": pickle.loads}, folder / "zip")
    write_weights(folder, (folder / "zip").read_bytes())


def claims_much(folder: Path) -> None:
    """A consistent header of a rule with 2 * 10^10 weights, without them."""
    edit_arguments(folder, controller_hidden=100_000)
    entries, body = unpack(folder)
    shape, (start, stop) = [200_000, 100_015], entries["controller.gate_weight"]["data_offsets"]
    for tensor in entries.values():
        if "shape" in tensor and tensor["data_offsets"][0] >= stop:
            tensor["data_offsets"] = [offset - (stop - start) for offset in tensor["data_offsets"]]
    rest = len(body) - (stop - start)
    entries["controller.gate_weight"].update(shape=shape, data_offsets=[rest, rest + 4 * shape[0] * shape[1]])
    write_weights(folder, pack(entries, body[:start] + body[stop:]))


def swap_offsets(entries: dict) -> None:
    """Two tensors of four floats share their bytes, and eight bytes belong to none."""
    entries[FIRST]["data_offsets"] = entries["constants.log_rms_floor"]["data_offsets"]


def gap(folder: Path) -> None:
    entries, body = unpack(folder)
    last = max(entries, key=lambda name: entries[name].get("data_offsets", [0])[0])
    entries[last]["data_offsets"] = [value + 8 for value in entries[last]["data_offsets"]]
    write_weights(folder, pack(entries, body + bytes(8)))


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket may have 107 bytes only
        made.bind(path.name)
        os.chdir(here)


def move_out(name: str) -> Damage:
    """The file lies outside the folder; a link leads to it."""

    def damage(folder):
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / name)
        (folder / name).symlink_to(outside / name)

    return damage


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


DAMAGED_WEIGHTS: dict[str, tuple[Damage, str]] = {
    "missing": (lambda folder: (folder / WEIGHTS).unlink(), "is missing"),
    "empty": (weights(lambda data: b""), "it has 0 bytes"),
    "seven-bytes": (weights(lambda data: data[:7]), "it has 7 bytes"),
    "eight-bytes": (weights(lambda data: data[:8]), "but only 0 follow"),
    "cut-in-header": (weights(lambda data: data[:100]), "but only 92 follow"),
    "cut-in-body": (weights(lambda data: data[:-1]), "bytes, but"),
    "trailing-bytes": (weights(lambda data: data + b"x"), "bytes, but"),
    "other-sha256": (lambda folder: edit_config(folder, weights_sha256="0" * 64), "has the SHA-256"),
    "no-sha256": (lambda folder: edit_config(folder, weights_sha256=None), "says None"),
    "sha256-of-wrong-type": (lambda folder: edit_config(folder, weights_sha256=[1] * 999), "has the SHA-256"),
    "too-large": (in_place_of(WEIGHTS, lambda path: sparse(path, 256 * MIB + 1)), "is too large"),
    "header-length-0": (weights(lambda data: bytes(8) + data[8:]), "not valid JSON"),
    "header-length-2^64-1": (weights(lambda data: b"\xff" * 8 + data[8:]), "claims 18446744073709551615 bytes"),
    "header-length-negative": (weights(lambda data: b"\0" * 7 + b"\x80" + data[8:]), "claims 9223372036854775808"),
    "header-above-limit": (weights(lambda data: pack(b" " * (MIB + 1))), "more than the 1048576"),
    "header-longer-than-file": (weights(lambda data: pack(b"{}", length=3)), "claims 3 bytes, but only 2"),
    "header-empty": (weights(lambda data: pack(b"")), "not valid JSON"),
    "header-not-json": (weights(lambda data: pack(b"{'a': 1}")), "not valid JSON"),
    "header-not-utf8": (weights(lambda data: pack(b'{"\xff": {}}')), "is not UTF-8 text"),
    "header-a-list": (weights(lambda data: pack([])), "must hold a JSON object"),
    "header-a-number": (weights(lambda data: pack(3)), "must hold a JSON object"),
    "header-deep": (weights(lambda data: pack(nested(MIB // 2 - 8))), "is nested too deeply"),
    "header-quite-deep": (weights(lambda data: pack(nested(400))), "has the entry"),
    "header-of-many-lists": (weights(lambda data: pack(b'{"":[' + b"[]," * 349_000 + b"[]]}")), "has the entry"),
    "header-with-a-tensor-twice": (
        weights(lambda data: pack(data[8:].split(b"}}")[0] + b'},"' + FIRST.encode() + b'":{}}')),
        f"'{FIRST}' occurs twice",
    ),
    "metadata-half-a-character": (
        header(lambda entries: entries.update(__metadata__={"a": "\ud800"})),
        "not be loaded",
    ),
    "metadata-not-an-object": (header(lambda entries: entries.update(__metadata__=[])), "its metadata are []"),
    "metadata-not-texts": (header(lambda entries: entries.update(__metadata__={"a": 1})), "its metadata are"),
    "entry-null": (header(lambda entries: entries.update({FIRST: None})), "has the entry None"),
    "entry-without-dtype": (header(lambda entries: entries[FIRST].pop("dtype")), "has the entry"),
    "entry-with-more": (entry(strides=[1]), "has the entry"),
    "dtype-unknown": (entry(dtype="F33"), "has type 'F33'"),
    "dtype-an-object": (entry(dtype={"__reduce__": "os.system"}), "has type {"),
    "dtype-bfloat16": (entry(dtype="BF16"), "has type 'BF16'"),
    "shape-negative": (entry(shape=[-2, -2]), "has the shape [-2, -2]"),
    "shape-float": (entry(shape=[4.0]), "has the shape [4.0]"),
    "shape-bool": (entry(shape=[True, 4]), "has the shape [True, 4]"),
    "shape-huge": (entry(shape=[2**40]), "has the shape"),
    "shape-product-huge": (entry(shape=[2**39] * 8), "needs"),
    "shape-longer-than-offsets": (entry(shape=[2**20]), "needs 4194304 bytes"),
    "shape-rank-9": (entry(shape=[1] * 8 + [4]), "has the shape"),
    "shape-text": (entry(shape="4"), "has the shape '4'"),
    "offsets-reversed": (entry(data_offsets=[16, 0]), "has the offsets [16, 0]"),
    "offsets-three": (entry(data_offsets=[0, 16, 16]), "has the offsets [0, 16, 16]"),
    "offsets-beyond-the-file": (entry(data_offsets=[2**39, 2**39 + 16]), "begins at byte"),
    "offsets-overlap": (header(swap_offsets), "begins at byte"),
    "offsets-gap": (gap, "begins at byte"),
    "claims-80-gigabytes": (claims_much, "its tensors take 80012000"),
    "tensor-missing": (tensors(lambda found: found.pop(FIRST)), f"lacks 1 of the rule's tensors, first '{FIRST}'"),
    "tensors-none": (tensors(dict.clear), "lacks 21 of the rule's tensors"),
    "tensor-extra": (tensors(lambda found: found.update(extra=torch.zeros(3))), "has 1 tensors that the rule lacks"),
    "tensor-extra-empty": (tensors(lambda found: found.update(extra=torch.zeros(0))), "the rule lacks, first 'extra'"),
    "tensor-name-path": (
        tensors(lambda found: found.update({"../../../../etc/cron.d/x": found.pop(FIRST)})),
        f"lacks 1 of the rule's tensors, first '{FIRST}'",
    ),
    "tensor-name-extra-path": (
        tensors(lambda found: found.update({"/etc/passwd\n\x1b[2J": torch.zeros(1)})),
        r"first '/etc/passwd\n\x1b[2J'",
    ),
    "tensor-name-attribute": (tensors(lambda found: found.update({"__class__": torch.zeros(1)})), "'__class__'"),
    "tensor-reshaped": (
        tensors(lambda found: found.update({FIRST: found[FIRST].reshape(2, 2)})),
        "as torch.float32 [2, 2]",
    ),
    "tensor-larger": (tensors(lambda found: found.update({FIRST: torch.zeros(5)})), "as torch.float32 [5]"),
    "tensor-scalar": (tensors(lambda found: found.update({FIRST: torch.tensor(1.0)})), "as torch.float32 []"),
    "tensor-of-integers": (tensors(lambda found: found.update({FIRST: found[FIRST].int()})), "as torch.int32 [4]"),
    "tensor-of-doubles": (tensors(lambda found: found.update({FIRST: found[FIRST].double()})), "as torch.float64 [4]"),
    "tensors-of-halves": (
        tensors(lambda found: found.update({name: tensor.half() for name, tensor in found.items()})),
        "has type 'F16'",
    ),
    "nan": (tensors(lambda found: found[FIRST].fill_(float("nan"))), f"has values in '{FIRST}' that are not finite"),
    "inf": (tensors(lambda found: found[FIRST][2:3].fill_(float("-inf"))), "not finite"),
    "pickle": (
        lambda folder: write_weights(folder, canary_pickle(folder / "canary")),
        "not an intact safetensors file",
    ),
    "torch-zip": (torch_zip, "not an intact safetensors file"),
    "git-lfs-pointer": (
        weights(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 800\n"),
        "is a Git LFS pointer",
    ),
    "html": (weights(lambda data: b"<!DOCTYPE html><html><head><title>404</title></head></html>"), "header claims"),
    "folder": (in_place_of(WEIGHTS, Path.mkdir), "is not a regular file"),
    "fifo": (in_place_of(WEIGHTS, os.mkfifo), "is not a regular file"),
    "socket": (in_place_of(WEIGHTS, listening_socket), "is not a regular file"),
    "link-out": (move_out(WEIGHTS), "is a link that leads out of its folder"),
    "link-to-itself": (in_place_of(WEIGHTS, lambda path: path.symlink_to(path)), "could not be read"),
    "link-to-nothing": (in_place_of(WEIGHTS, lambda path: path.symlink_to("nothing")), "is missing"),
}

UNLIKE: dict[str, tuple[Damage, str]] = {
    "rule-of-other-weights": (lambda folder: edit_config(folder, rule="sgd", config={}), "lacks 1 of the rule's"),
    "integer-large": (lambda folder: edit_arguments(folder, controller_hidden=10**7), "where the rule has"),
    "other-size": (
        lambda folder: edit_arguments(folder, direction_hidden=3),
        "as torch.float32 [2, 5] where the rule has torch.float32 [3, 5]",
    ),
    "other-parts": (lambda folder: edit_arguments(folder, direction=False), "has 3 tensors that the rule lacks"),
}
"""Weights and config each intact, but of different rules."""

DAMAGED_CONFIG: dict[str, tuple[Damage, str]] = {
    "missing": (lambda folder: (folder / CONFIG).unlink(), "is missing"),
    "empty": (config_text(lambda text: b""), "not valid JSON"),
    "blank": (config_text(lambda text: b" \n"), "not valid JSON"),
    "truncated": (config_text(lambda text: text[:-3]), "not valid JSON"),
    "two-objects": (config_text(lambda text: text + text), "not valid JSON"),
    "byte-order-mark": (config_text(lambda text: b"\xef\xbb\xbf" + text), "not valid JSON"),
    "not-utf8": (config_text(lambda text: text.replace(b"residual", b"r\xe9sidual")), "is not UTF-8 text"),
    "utf16": (config_text(lambda text: text.decode().encode("utf-16")), "is not UTF-8 text"),
    "python": (config_text(lambda text: b"__import__('os').system('true')"), "not valid JSON"),
    "pickle": (
        in_place_of(CONFIG, lambda path: path.write_bytes(canary_pickle(path.with_name("canary")))),
        "not UTF-8",
    ),
    "list": (lambda folder: write_config(folder, [read_config(folder)]), "must hold a JSON object"),
    "null": (lambda folder: write_config(folder, None), "must hold a JSON object"),
    "deep": (config_text(lambda text: nested(MIB // 2 - 8)), "is nested too deeply"),
    "key-twice": (config_text(lambda text: text.replace(b"{", b'{"rule": "sgd", ', 1)), "key 'rule' occurs twice"),
    "nan": (config_text(lambda text: text.replace(b"4.0", b"NaN")), "'NaN' is not a finite number"),
    "infinity": (config_text(lambda text: text.replace(b"4.0", b"1e999")), "'1e999' is not a finite number"),
    "thousands-of-digits": (config_text(lambda text: text.replace(b"4.0", b"9" * 9999)), "more than 20 characters"),
    "too-large": (config_text(lambda text: text + b" " * MIB), "is too large"),
    "no-format": (config_text(lambda text: text.replace(b'"format"', b'"f"')), "has the format None"),
    "other-format": (lambda folder: edit_config(folder, format="pytorch"), "has the format 'pytorch'"),
    "no-version": (config_text(lambda text: text.replace(b'"format_version"', b'"v"')), "has the format version None"),
    "version-0": (lambda folder: edit_config(folder, format_version=0), "version 0, which never existed"),
    "version-negative": (lambda folder: edit_config(folder, format_version=-1), "version -1, which never existed"),
    "version-true": (lambda folder: edit_config(folder, format_version=True), "version True, which never existed"),
    "version-float": (lambda folder: edit_config(folder, format_version=1.0), "version 1.0, which never existed"),
    "version-text": (lambda folder: edit_config(folder, format_version="1"), "version '1', which never existed"),
    "version-list": (lambda folder: edit_config(folder, format_version=[1]), "version [1], which never existed"),
    "version-newer": (lambda folder: edit_config(folder, format_version=2), "a newer lightning_lopt (format version 2"),
    "version-huge": (lambda folder: edit_config(folder, format_version=10**18), "a newer lightning_lopt"),
    "rule-missing": (lambda folder: edit_config(folder, rule=None), "names the rule None"),
    "rule-unknown": (lambda folder: edit_config(folder, rule="lion"), "names the rule 'lion'"),
    "rule-path": (lambda folder: edit_config(folder, rule="../../residual"), "names the rule '../../residual'"),
    "rule-import": (lambda folder: edit_config(folder, rule="os.system"), "names the rule 'os.system'"),
    "rule-class-name": (lambda folder: edit_config(folder, rule="ResidualRule"), "names the rule 'ResidualRule'"),
    "rule-list": (lambda folder: edit_config(folder, rule=["residual"]), "names the rule ['residual']"),
    "rule-object": (lambda folder: edit_config(folder, rule={"residual": 1}), "names the rule {"),
    "arguments-missing": (lambda folder: edit_config(folder, config=None), "an object under 'config'"),
    "arguments-list": (lambda folder: edit_config(folder, config=[["direction", True]]), "an object under 'config'"),
    "argument-unknown": (
        lambda folder: edit_arguments(folder, lr=1.0),
        "the unknown argument 'lr'; it takes direction,",
    ),
    "argument-self": (lambda folder: edit_arguments(folder, self=1), "the unknown argument 'self'"),
    "argument-dunder": (lambda folder: edit_arguments(folder, __class__="os"), "the unknown argument '__class__'"),
    "bool-as-integer": (lambda folder: edit_arguments(folder, direction=1), "direction=1; expected a value like True"),
    "integer-as-bool": (lambda folder: edit_arguments(folder, direction_hidden=True), "expected a value like 8"),
    "integer-as-float": (lambda folder: edit_arguments(folder, direction_hidden=2.0), "expected a value like 8"),
    "float-as-text": (lambda folder: edit_arguments(folder, step_range="4"), "expected a value like 4.0"),
    "float-as-null": (lambda folder: edit_arguments(folder, step_range=None), "expected a value like 4.0"),
    "list-as-text": (lambda folder: edit_arguments(folder, orthogonalised="matrix"), "expected a value like ("),
    "list-of-lists": (lambda folder: edit_arguments(folder, orthogonalised=[["matrix"]]), "expected a value like ("),
    "list-very-deep": (lambda folder: edit_arguments(folder, orthogonalised=[[[[[[]]]]]]), "lists of these"),
    "argument-an-object": (lambda folder: edit_arguments(folder, step_range={"a": 1}), "lists of these"),
    "integer-huge": (lambda folder: edit_arguments(folder, direction_hidden=10**9), "up to 10000000 if integer"),
    "integer-negative": (lambda folder: edit_arguments(folder, direction_hidden=-1), "must be at least 1"),
    "value-out-of-range": (lambda folder: edit_arguments(folder, step_range=1.0), "must be a number above 1"),
    "value-unknown": (lambda folder: edit_arguments(folder, orthogonalised=["tensor"]), "has role 'tensor'"),
    "folder": (in_place_of(CONFIG, Path.mkdir), "is not a regular file"),
    "fifo": (in_place_of(CONFIG, os.mkfifo), "is not a regular file"),
    "link-out": (move_out(CONFIG), "is a link that leads out of its folder"),
    "link-to-device": (in_place_of(CONFIG, lambda path: path.symlink_to("/dev/zero")), "leads out of its folder"),
    "link-to-secret": (in_place_of(CONFIG, lambda path: path.symlink_to("/etc/passwd")), "leads out of its folder"),
}

CASES = [
    pytest.param(name, damage, wrong, id=f"{name.split('.')[0]}-{case}")
    for name, damaged in ((WEIGHTS, DAMAGED_WEIGHTS), (WEIGHTS, UNLIKE), (CONFIG, DAMAGED_CONFIG))
    for case, (damage, wrong) in damaged.items()
]


def most_memory() -> int:
    """The most bytes that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refusal(source: object) -> str:
    """The message of the refusal of ``source``, after checks of what holds for all of them."""
    resident = most_memory()
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(RuleFileError) as caught:
            load_rule(source)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5.0  # seconds of the processor, with the tracing of memory
    assert peak < 40 * MIB
    assert most_memory() - resident < 64 * MIB  # tensors as well, which tracemalloc does not see
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 700
    assert re.search(r"; \w.*\.$", message)  # what is wrong; what to do
    return message


@pytest.mark.parametrize(("name", "damage", "wrong"), CASES)
def test_damaged_folder_is_refused(folder, name, damage, wrong):
    assert load_rule(folder).rule_name == "residual"
    damage(folder)
    message = refusal(folder)
    assert str(folder / name) in message
    assert wrong in message
    assert not (folder / "canary").exists()


def test_a_canary_would_sing(tmp_path):
    pickle.loads(canary_pickle(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "source",
    [
        "",
        "nothing/here",
        "a" * 5000,
        "a\0b",
        "\ud800",
        "../../base",
        "BASE",
        None,
        3,
        b"base",
        ["base"],
        Path("a" * 999),
    ],
    ids=lambda source: repr(source)[:20],
)
def test_what_is_no_source_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(source)


def test_file_and_closed_folder_are_no_source(folder, monkeypatch):
    assert "neither a folder nor an embedded rule" in refusal(folder / WEIGHTS)

    def denied(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "could not be read ([Errno 13] Permission denied)" in refusal(folder)


def test_links_within_the_folder_are_followed(folder, tmp_path):
    shutil.move(folder / WEIGHTS, folder / "weights-3")
    (folder / WEIGHTS).symlink_to("weights-3")
    (tmp_path / "link").symlink_to(folder)
    assert load_rule(tmp_path / "link").rule_name == "residual"


def test_adam_reads_no_argument_as_another(tmp_path):
    folder = save_rule(AdamRule(), tmp_path / "adam")
    edit_arguments(folder, betas=[0.9, 0.999, 0.5])
    assert "betas=[0.9, 0.999, 0.5], which it reads as [0.9, 0.999]" in refusal(folder)
    edit_arguments(folder, betas=[0.9])
    assert "cannot be built from" in refusal(folder)
    edit_arguments(folder, betas=[0.9, 0.999], weight_decay=-1.0)
    assert "weight_decay must be" in refusal(folder)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.write_bytes(b"\xff"), "is not UTF-8"),
        (lambda path: sparse(path, MIB + 1), "is too large"),
        (lambda path: path.symlink_to("/etc/passwd"), "leads out of its folder"),
        (os.mkfifo, "is not a regular file"),
    ],
    ids=["missing", "not-utf8", "too-large", "link-out", "fifo"],
)
def test_damaged_card_is_refused(folder, make, wrong):
    in_place_of(CARD, make)(folder)
    with pytest.raises(RuleFileError, match=wrong) as caught:
        load_card(folder)
    assert str(folder / CARD) in str(caught.value)


class Greedy(UpdateRule):
    """A registered rule whose constructor is easy to abuse."""

    def __init__(self, size: int, layers: int = 1, hidden: int = 1, mask: bool = False, note: None = None) -> None:
        super().__init__()
        self.config_values = {"size": size, "layers": layers, "hidden": hidden, "mask": mask, "note": note}
        self.weight = nn.Parameter(torch.zeros(size))
        self.register_buffer("table", torch.zeros(hidden), persistent=False)
        self.counts = [torch.zeros(1) for _ in range(layers)]
        if mask:
            self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
        if self.weight.device.type == "cpu" and note == "fail":
            raise OSError("a constructor may do anything")

    @property
    def config(self):
        return self.config_values

    def init_tensor(self, param, role):
        raise NotImplementedError

    step = init_tensor


@pytest.fixture
def greedy(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "greedy", Greedy)
    monkeypatch.setattr(Greedy, "rule_name", "greedy")
    yield save_rule(Greedy(2, mask=True), tmp_path / "greedy")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"layers": 10**7}, "building it takes more than 20000 torch calls"),
        ({"hidden": 10**8}, "up to 10000000 if integer"),
        ({"hidden": 10**7, "size": 10**7}, "where the rule has torch.float32 [10000000]"),
        ({"note": "fail"}, "a constructor may do anything"),
        ({"note": {"a": 1}}, "lists of these"),
    ],
)
def test_own_rule_cannot_be_made_to_take_much(greedy, arguments, wrong):
    assert load_rule(greedy).config["size"] == 2
    edit_arguments(greedy, **arguments)
    assert wrong in refusal(greedy)


def test_own_rule_of_bounded_size(greedy, monkeypatch):
    monkeypatch.setattr("lightning_lopt.rules.contract.build.MAX_BYTES", 10**6)
    edit_arguments(greedy, hidden=10**7)
    assert "asks for a rule of 40000010 bytes, more than the 1000000" in refusal(greedy)


def test_own_rule_needs_its_arguments(greedy):
    edit_config(greedy, config={})
    assert "does not give rule 'greedy' the argument 'size'; add it" in refusal(greedy)


def test_bytes_that_are_no_booleans_are_refused(greedy):
    header, body = unpack(greedy)
    start, stop = header["mask"]["data_offsets"]
    write_weights(greedy, pack(header, body[:start] + b"\1\2" + body[stop:]))
    assert "has values in 'mask' that are not 0 or 1" in refusal(greedy)
