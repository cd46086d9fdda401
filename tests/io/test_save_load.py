"""What is saved is loaded again, exactly; what cannot be saved, or is cut short, loses nothing."""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from rule_folders import CARD, CONFIG, RULES_TO_SAVE, WEIGHTS, read_config, same, trained, unpack
from torch import nn

import lightning_lopt.io
from lightning_lopt import AdamRule, ResidualRule, SGDRule, StepContext, UpdateRule, load_rule, save_rule
from lightning_lopt.io import RuleFileError, load_card
from lightning_lopt.rules import RULES

FILES = (CONFIG, WEIGHTS, CARD)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_every_registered_rule_is_tried():
    assert {make().rule_name for make in RULES_TO_SAVE.values()} >= set(RULES)


@pytest.fixture(autouse=True)
def _fresh_rules_may_draw():
    """Fresh rules draw their initial weights from the global random state; that is not what is tested here."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", RULES_TO_SAVE.values(), ids=RULES_TO_SAVE)
def test_what_is_loaded_is_what_was_saved(make, dtype, tmp_path):
    rule = trained(make, dtype)
    assert save_rule(rule, tmp_path / "one") == tmp_path / "one"
    loaded = load_rule(tmp_path / "one")
    assert same(loaded, rule)
    assert all(value.requires_grad and value.device.type == "cpu" for value in loaded.parameters())
    save_rule(loaded, str(tmp_path / "two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == set(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_loaded_rule_makes_the_same_steps(tmp_path):
    torch.manual_seed(3)
    rule = ResidualRule().double()
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn_like(value))
    params = {"w": torch.randn(3, 4, dtype=torch.float64), "b": torch.randn(4, dtype=torch.float64)}
    context = StepContext(torch.tensor(2.0), torch.tensor(9.0), torch.tensor(0.5))
    loaded = load_rule(save_rule(rule, tmp_path / "rule"))
    ours = rule(params, params, rule.init_state(params, {}), context)[0]
    theirs = loaded(params, params, loaded.init_state(params, {}), context)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in params)


def test_what_the_files_say(tmp_path):
    save_rule(SGDRule(), tmp_path / "rule", meta_training={"outer_steps": 3, "note": "σ"})
    config = read_config(tmp_path / "rule")
    assert len(config.pop("weights_sha256")) == 64
    assert config.pop("lightning_lopt_version") == lightning_lopt.__version__
    assert config == {
        "format": "lightning_lopt",
        "format_version": 1,
        "rule": "sgd",
        "config": SGDRule().config,
        "meta_training": {"outer_steps": 3, "note": "σ"},
    }
    header, body = unpack(tmp_path / "rule")
    assert header["log_lr"] == {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    assert np.frombuffer(body, "<f4") == np.log(np.float32(0.1))


def test_shared_transposed_and_empty_tensors(tmp_path, own_rule):
    class Odd(own_rule):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
            self.tied = self.one
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.register_buffer("count", torch.tensor(2**53 + 1))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("view", torch.arange(9.0)[::3])

    RULES["own"] = Odd
    rule = Odd()
    loaded = load_rule(save_rule(rule, tmp_path / "rule"))
    assert same(loaded, rule)
    assert loaded.one is loaded.tied


def test_tables_that_are_not_saved_keep_their_type(tmp_path, own_rule):
    """A float32 rule may hold a float64 table outside its state_dict; only a rule that was turned is turned again."""

    class WithTable(own_rule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("table", torch.ones(2, dtype=torch.float64), persistent=False)

    RULES["own"] = WithTable
    assert load_rule(save_rule(WithTable(), tmp_path / "single")).table.dtype == torch.float64
    assert load_rule(save_rule(WithTable().double(), tmp_path / "double")).weight.dtype == torch.float64


def test_mixed_types_are_kept_and_turned(tmp_path, own_rule):
    class Mixed(own_rule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.table = nn.Parameter(torch.ones(2, dtype=torch.float64))

    RULES["own"] = Mixed
    for number, rule in enumerate((Mixed(), Mixed().double(), Mixed().float())):
        assert same(load_rule(save_rule(rule, tmp_path / str(number))), rule)


# What must not matter, and must not change.


def test_globals_neither_matter_nor_change(folder):
    expected = load_rule(folder)
    torch.manual_seed(11)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with mode:
                loaded = load_rule(folder)
                save_rule(loaded, folder)
            assert same(loaded, expected)
            assert not any(value.is_inference() or not value.requires_grad for value in loaded.parameters())
        assert torch.get_default_dtype() == torch.bfloat16
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def test_globals_do_not_change_when_loading_fails(folder):
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    config = read_config(folder)
    config["config"]["step_range"] = 0.5
    (folder / CONFIG).write_text(json.dumps(config))
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(RuleFileError, match="step_range"):
            load_rule(folder)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def forbidden(*args, **more):
        raise AssertionError("pickle was used")

    for module, names in ((pickle, ("load", "loads", "dump", "dumps", "Unpickler")), (torch, ("load", "save"))):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)
    load_rule(save_rule(ResidualRule(), tmp_path / "rule"))


def test_the_code_has_no_way_to_run_what_it_reads():
    for path in Path(lightning_lopt.io.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "yaml", "subprocess", "joblib"} & set(names)
            if isinstance(node, ast.Name):
                assert node.id not in ("eval", "exec", "compile", "__import__")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save")


# Where it is saved to.


def test_existing_folder_is_replaced_and_other_files_stay(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / ".saving-left-behind").mkdir()
    save_rule(AdamRule(), folder, card="new")
    assert same(load_rule(folder), AdamRule())
    assert load_card(folder) == "new"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".saving-left-behind",
        CARD,
        CONFIG,
        WEIGHTS,
        "notes.txt",
    ]


def test_folder_is_made_with_its_parents_or_through_a_link(tmp_path, monkeypatch):
    assert same(load_rule(save_rule(SGDRule(), tmp_path / "a" / "b" / ("c" * 255))), SGDRule())
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    save_rule(SGDRule(), tmp_path / "link")
    assert set(contents(tmp_path / "empty")) == set(FILES)
    monkeypatch.chdir(tmp_path)
    save_rule(AdamRule(), "base")
    assert load_rule("./base").rule_name == "adam"
    assert load_rule("base").rule_name == "residual"


def test_only_the_folder_itself_need_be_writable(folder, monkeypatch):
    """A mount point: its parent is another file system, to which files cannot be moved."""
    real = {name: getattr(os, name) for name in ("replace", "rename")}

    def move(name):
        def within(source, target, **more):
            if not Path(source).is_relative_to(folder) or not Path(target).is_relative_to(folder):
                raise OSError(18, "Invalid cross-device link")
            return real[name](source, target, **more)

        return within

    for name in real:
        monkeypatch.setattr(os, name, move(name))
    save_rule(SGDRule(), folder)
    assert load_rule(folder).rule_name == "sgd"


@pytest.mark.parametrize("target", ["a\0b", "loop/rule", "file", "file/rule", "x" * 256])
def test_where_nothing_can_be_written(target, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RuleFileError, match=r"could not be written \(.*\); choose another folder\.$"):
        save_rule(SGDRule(), tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]
    assert (tmp_path / "file").read_text() == "mine"


# Cut short.


class Crash(BaseException):
    """Not an ``Exception``: nobody may handle it."""


@pytest.mark.parametrize("error", [Crash("stop"), OSError(28, "No space left on device")], ids=["crash", "disk-full"])
@pytest.mark.parametrize("function", ["mkdir", "open", "fsync", "replace", "rename", "unlink"])
@pytest.mark.parametrize("exists", [True, False], ids=["old-folder", "new-folder"])
def test_cut_short_at_any_call_the_old_rule_or_the_new_one_loads(exists, function, error, tmp_path, monkeypatch):
    """Fails the n-th call of ``function`` for every n. Without ``rmtree`` nothing is tidied up, as after kill -9."""
    monkeypatch.setattr("shutil.rmtree", lambda *args, **more: None)
    old, new = trained(ResidualRule), trained(AdamRule)
    real, outcomes = getattr(os, function), []
    for call in range(1, 20):
        folder = tmp_path / str(call) / "rule"
        if exists:
            save_rule(old, folder)
        calls = 0

        def failing(*args, call=call, **more):
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing)
            try:
                save_rule(new, folder)
            except (Crash, RuleFileError):
                pass
            else:
                outcomes.append("done")
        if folder.exists():
            loaded = load_rule(folder)
            outcomes.append("old" if same(loaded, old) else "new")
            assert outcomes[-1] == "old" or same(loaded, new)
            assert set(FILES) <= set(contents(folder))
        else:
            assert not exists
            outcomes.append("none")
        if outcomes[-2:] == ["done", "new"]:
            save_rule(new, folder)  # and what was left behind is no obstacle
            assert not (folder / "model.safetensors.next").exists()
            break
    assert outcomes[-2:] == ["done", "new"]
    before = outcomes[:-2]
    assert before == sorted(before, key=["old", "none", "new"].index)  # one moment of change


@pytest.mark.parametrize("left", ["garbage", "fifo", "folder", "link"])
def test_what_lies_under_the_pending_name_is_not_trusted(left, folder):
    pending, expected = folder / "model.safetensors.next", load_rule(folder)
    {
        "garbage": lambda: pending.write_bytes(b"garbage"),
        "fifo": lambda: os.mkfifo(pending),
        "folder": pending.mkdir,
        "link": lambda: pending.symlink_to("/etc/passwd"),
    }[left]()
    assert same(load_rule(folder), expected)
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(RuleFileError, match=r"it has 0 bytes|leads out of its folder"):
        load_rule(folder)


def test_saves_at_once_leave_one_whole_rule(tmp_path):
    """All ranks of a run may save the same rule to the same folder."""
    rule, failures = trained(SGDRule), []

    def save():
        try:
            for _ in range(4):
                save_rule(rule, tmp_path / "rule")
        except RuleFileError as error:
            failures.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert contents(tmp_path / "rule") == contents(save_rule(rule, tmp_path / "other"))


def test_folder_that_another_process_makes_at_the_last_moment(tmp_path, monkeypatch):
    folder, real = tmp_path / "rule", os.rename

    def late(source, target):
        monkeypatch.setattr(os, "rename", real)
        save_rule(AdamRule(), folder)
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    save_rule(SGDRule(), folder)
    assert same(load_rule(folder), SGDRule())
    assert [path.name for path in tmp_path.iterdir()] == ["rule"]


# What is not saved.


@pytest.fixture
def own_rule(monkeypatch):
    """A base class for rules of a test; whatever is registered is forgotten after it."""

    class Own(UpdateRule):
        rule_name = "own"
        config = {}  # noqa: RUF012

        def init_tensor(self, param, role):
            raise NotImplementedError

        step = init_tensor

    monkeypatch.setitem(RULES, "own", Own)
    yield Own
    monkeypatch.undo()


def refused(rule, folder, match, **more):
    """Saving fails with ``match`` and leaves nothing, not even the parents' draft."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(RuleFileError, match=match) as caught:
        save_rule(rule, folder, **more)
    assert str(folder) in str(caught.value)
    assert ".saving" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(value, folder):
    rule = ResidualRule()
    with torch.no_grad():
        rule.constants.momentum_mix[1] = value
    refused(rule, folder, r"'constants\.momentum_mix' of the rule has values that are not finite; save an earlier")
    refused(rule, folder.parent / "new", "not finite")


def test_tensors_of_other_kinds_are_not_saved(folder, own_rule):
    refused(ResidualRule().to("meta"), folder, "keep only ordinary tensors in the state of the rule")
    refused(ResidualRule().bfloat16(), folder, "is of torch.bfloat16; turn it into one of torch.float64, torch.float32")
    rule = own_rule()
    rule.register_buffer("sparse", torch.eye(2).to_sparse())
    refused(rule, folder, "keep only ordinary tensors in the state of the rule")
    own_rule.get_extra_state = lambda self: {"a": 1}
    refused(own_rule(), folder, r"'_extra_state' of the rule is \{'a': 1\}")


def test_rules_that_are_not_registered_are_not_saved(folder, own_rule):
    class Derived(ResidualRule):
        """Has the name that it inherits, but is another class."""

    refused(Derived(), folder, r"Derived \(rule name 'residual'\) is not a registered rule; decorate the class")
    refused(nn.Linear(1, 1), folder, r"Linear \(rule name None\) is not a registered rule")


@pytest.mark.parametrize("value", [float("nan"), {1}, torch.zeros(1), object()], ids=["nan", "set", "tensor", "object"])
def test_what_is_no_json_is_not_saved(value, folder):
    refused(SGDRule(), folder, "is not JSON", meta_training={"a": value})
    refused(SGDRule(), folder, "is not JSON", meta_training=[value])


def test_config_that_would_not_load_is_not_saved(folder, own_rule):
    endless: list = []
    endless.append(endless)
    refused(SGDRule(), folder, "is not JSON", meta_training={"a": endless})
    refused(SGDRule(), folder, "could not be loaded again .*'1' occurs twice", meta_training={1: 0, "1": 0})
    refused(
        SGDRule(), folder, r"could not be loaded again .*config\.json is too large", meta_training={"a": "x" * 2**20}
    )
    own_rule.config = {"absent": 1}
    refused(
        own_rule(), folder, r"could not be loaded again \(config\.json gives rule 'own' the unknown argument 'absent'"
    )
    own_rule.config = {}
    rule = own_rule()
    rule.extra = nn.Parameter(torch.zeros(1))
    refused(rule, folder, r"\(model\.safetensors has 1 tensors that the rule lacks, first 'extra'")


def test_rule_that_changes_its_weights_on_loading_is_not_saved(folder, own_rule):
    class Rounding(own_rule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def load_state_dict(self, state, strict=True):
            super().load_state_dict({name: tensor.round() for name, tensor in state.items()}, strict)

    RULES["own"] = Rounding
    rule = Rounding()
    nn.init.constant_(rule.weight, 0.5)
    refused(rule, folder, "the loaded rule has other weights than the saved rule; correct its class")


def test_card_that_could_not_be_loaded_is_not_saved(folder):
    refused(SGDRule(), folder, "the card is not valid text", card="\ud800")
    refused(SGDRule(), folder, r"could not be loaded again \(README\.md is too large", card="x" * (2**20 + 1))
