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
    """Writes a checkpoint to a temporary file in the same folder, flushes the file to the disk and renames it.

    After a kill or a power cut at any moment, either the old or the new checkpoint exists completely.
    Lightning's writer uses the system's folder for temporary files. If that folder is on another file system (``/tmp``
    in memory, for instance), the final move is a copy, which is not atomic. Remote paths still go through Lightning's
    writer.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        file_path = os.fspath(path)
        if "://" in file_path or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        os.makedirs(os.path.dirname(file_path) or ".", exist_ok=True)
        with whole_file(Path(file_path)) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # the disk is full; torch raises another error afterwards
                    raise error.__context__ from None
                raise
