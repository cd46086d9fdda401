"""Atomic writing of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_lopt.io.whole import whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its place, flushes it to the disk and renames it.

    After a kill or a power cut at any moment, the old checkpoint or the new one exists.
    Lightning's writer uses the folder for temporary files. If that folder is on another file system (``/tmp`` in
    memory, for instance), the move from there is a copy and not atomic. Remote paths still go through Lightning's
    writer.
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
                if isinstance(error.__context__, OSError):  # a full disk; torch raises another error afterwards
                    raise error.__context__ from None
                raise
