"""Files that appear whole or not at all, and drafts of processes that were killed."""

import os
import signal
import sys
import time
from multiprocessing import get_context

import pytest

from lightning_lopt import SGDRule, load_rule, save_rule
from lightning_lopt.io import whole
from lightning_lopt.io.whole import draft_folder, remove_abandoned, whole_file, write_whole

locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks on folders; there age decides")
ABANDONED = ".saving-" + "0" * 32


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    write_whole(tmp_path / "new" / "a.txt", "σ\n")
    write_whole(tmp_path / "new" / "a.txt", b"second")
    write_whole(tmp_path / "new" / ("x" * 255), "")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"second"
    assert names(tmp_path / "new") == ["a.txt", "x" * 255]


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_full_disk_leaves_the_old_file(call, tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'$"):
            write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_exception_while_writing_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a.txt", "old")

    def cut_short():
        with whole_file(tmp_path / "a.txt") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_short()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def hold_a_draft(folder, ready):
    with draft_folder(folder) as draft:
        (draft / "half").write_text("half")
        ready.set()
        time.sleep(60)


@locks
def test_drafts_of_the_killed_are_removed_and_those_of_the_living_are_not(tmp_path):
    context = get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_a_draft, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.wait(60)
        (draft,) = names(tmp_path)
        os.utime(tmp_path / draft, (0, 0))  # however old it is
        write_whole(tmp_path / "a.txt", "")
        assert names(tmp_path) == sorted([draft, "a.txt"])
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert (tmp_path / draft / "half").exists()
    write_whole(tmp_path / "b.txt", "")
    assert names(tmp_path) == ["a.txt", "b.txt"]


@locks
def test_saving_a_rule_removes_drafts_beside_it_and_inside(tmp_path):
    save_rule(SGDRule(), tmp_path / "rule")
    for place in (tmp_path, tmp_path / "rule"):
        (place / ABANDONED).mkdir()
        (place / ABANDONED / "model.safetensors").write_bytes(b"half")
    save_rule(SGDRule(0.5), tmp_path / "rule")
    assert load_rule(tmp_path / "rule").config["lr"] == 0.5
    assert names(tmp_path) == ["rule"]
    assert names(tmp_path / "rule") == ["README.md", "config.json", "model.safetensors"]


def test_nothing_else_is_removed(tmp_path):
    """Neither what others have named alike, nor what a link of that name points to."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ABANDONED).symlink_to("kept")
    (tmp_path / ".saving-mine").mkdir()
    (tmp_path / (".saving-" + "1" * 32)).write_text("a file")
    before = names(tmp_path)
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "missing")
    assert names(tmp_path) == before
    assert (tmp_path / "kept" / "file").exists()


def test_where_folders_cannot_be_locked_age_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "_lock", lambda draft: None)
    (tmp_path / ABANDONED).mkdir()
    write_whole(tmp_path / "a.txt", "")
    assert names(tmp_path) == [ABANDONED, "a.txt"]
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / ABANDONED, (yesterday, yesterday))
    write_whole(tmp_path / "a.txt", "")
    assert names(tmp_path) == ["a.txt"]


@locks
def test_a_draft_that_another_process_took_for_abandoned_is_made_anew(tmp_path, monkeypatch):
    """Between its making and its locking."""
    real, first = whole._lock, []

    def slow(draft):
        if not first:
            first.append(draft)
            draft.rmdir()
        return real(draft)

    monkeypatch.setattr(whole, "_lock", slow)
    with draft_folder(tmp_path) as draft:
        assert draft != first[0]
        assert draft.is_dir()
