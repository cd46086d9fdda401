"""Atomic writing of files and folders, and removal of unfinished folders of killed processes.

A *draft* is a folder ``.saving-<32 digits>`` beside its target, on the same file system. Finished files are moved from
the draft to their places. The writing process holds an advisory lock on the draft. The system releases this lock when
the process ends for any reason, so a draft that can be locked is abandoned. Some systems cannot lock folders (Windows,
some network file systems); on these, a draft counts as abandoned when it is a day old.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_DRAFT = re.compile(r"\.saving-[0-9a-f]{32}")
_DAY = 24 * 3600.0  # seconds
_ATTEMPTS = 10


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file by ``data`` (text as UTF-8) with :func:`whole_file`; the folder of the file is made if necessary.

    Raises:
        OSError: if the file cannot be written; the old file still exists then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file for writing; at the end of the block the file is flushed to the disk and then replaces ``path``.

    After an exception, a kill or a power cut, the old file (or no file) is still there. An ``OSError`` names ``path``.
    """
    try:
        with draft_folder(path.parent) as draft:
            part = draft / path.name
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the message names the target


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in ``parent`` for unfinished files; the folder is removed at the end, unless it was moved.

    Abandoned drafts in ``parent`` are removed first.

    Raises:
        OSError: if the folder cannot be made.
    """
    remove_abandoned(parent)
    draft, lock = _new_draft(parent)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts in ``folder`` whose process has ended; drafts that cannot be removed stay, without an error."""
    try:
        drafts = [folder / name for name in os.listdir(folder) if _DRAFT.fullmatch(name)]
    except OSError:
        return
    for draft in drafts:
        with suppress(OSError):
            lock = _lock(draft)
            try:
                if lock is not None or time.time() - draft.stat().st_mtime > _DAY:
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                if lock is not None:
                    os.close(lock)


def _new_draft(parent: Path) -> tuple[Path, int | None]:
    """A new draft, and the file descriptor of its lock."""
    for _ in range(_ATTEMPTS):
        draft = parent / f".saving-{uuid.uuid4().hex}"
        draft.mkdir()
        with suppress(OSError):  # another process may remove the draft before it is locked
            lock = _lock(draft)
            if lock is None or draft.exists():
                return draft, lock
            os.close(lock)
    raise OSError(f"{parent} is being cleaned by another process; try again")


def _lock(draft: Path) -> int | None:
    """A file descriptor with the lock of a draft; ``None`` if the system cannot lock folders.

    Raises:
        OSError: if another process holds the lock, or the draft is not a folder.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
