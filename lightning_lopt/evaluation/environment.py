"""The machine and the versions with which something was measured."""

from __future__ import annotations

import os
import platform

import torch

from lightning_lopt.__about__ import __version__


def environment_of(device: torch.device, threads: int) -> dict[str, str | int]:
    """Versions, processor and device, as JSON values.

    Args:
        device: where the work was done.
        threads: of PyTorch, in the processes that did it.
    """
    return {
        "lightning_lopt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count() or 0,
        "threads": threads,
    }


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
