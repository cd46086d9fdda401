"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_lopt.io.whole import whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk and renames it: a kill or a power cut at any moment
    leaves the old checkpoint or the new one.

    Lightning's own writer goes through the folder for temporary files, from where the move is a copy, and not atomic,
    if that folder lies on another file system (``/tmp`` in memory, for instance). Remote paths are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        place = os.fspath(path)
        if "://" in place or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        with whole_file(Path(place)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # a full disk, which torch's own check of the end has hidden
                    raise error.__context__ from None
                raise
