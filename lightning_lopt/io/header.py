"""Reading of the header of a safetensors file; the header is checked before any tensor exists.

A file contains 8 bytes (little-endian length N), N bytes of JSON, and then the bytes of all tensors without gaps:
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.files import MIB, TAKE_AGAIN, parse_json_object
from lightning_lopt.rules.contract.build import TensorSpec

MAX_HEADER_BYTES = 1 * MIB  # enough for about 10,000 tensors; parsed JSON objects take thirty times as much memory
MAX_RANK = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of the tensors of rules: floating types for θ, the other types for buffers."""

LFS_POINTER = b"version https://git-lfs"


def read_header(data: bytes, label: str) -> dict[str, TensorSpec]:
    """Type and shape of each tensor of the safetensors file ``data``, by name.

    Raises:
        RuleFileError: if the header is not well-formed, names a type that rules do not use, or does not describe each
            byte of the file exactly once.
    """

    def refuse(wrong: str) -> RuleFileError:
        return RuleFileError(f"{label} is not an intact safetensors file ({wrong}); {TAKE_AGAIN}.")

    if data.startswith(LFS_POINTER):
        raise RuleFileError(f"{label} is a Git LFS pointer instead of the weights; fetch them with 'git lfs pull'.")
    if len(data) < 8:
        raise refuse(f"it has {len(data)} bytes, fewer than its first field")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise refuse(f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that are read")
    body = len(data) - 8 - length
    if body < 0:
        raise refuse(f"its header claims {length} bytes, but only {len(data) - 8} follow")
    header = parse_json_object(data[8 : 8 + length], f"the header of {label}")
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise refuse(f"its metadata are {show(metadata)}, not texts by name")

    specs, ranges = {}, []
    for name, entry in header.items():
        wrong = _entry_error(entry)
        if wrong:
            raise refuse(f"tensor {show(name)} {wrong}")
        specs[name] = TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"]))
        ranges.append((*entry["data_offsets"], name))
    end = 0
    for start, stop, name in sorted(ranges):
        if start != end:
            raise refuse(f"tensor {show(name)} begins at byte {start} of the body where {end} was expected")
        end = stop
    if end != body:
        raise refuse(f"its tensors take {end} bytes, but {body} follow the header")
    return specs


def _entry_error(entry: Any) -> str:
    """The error in the entry of one tensor, as a clause; the text is empty if the entry is correct."""
    if not (isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}):
        return f"has the entry {show(entry)} instead of dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in DTYPES):
        return f"has type {show(dtype)}, which is none of {', '.join(DTYPES)}"
    if not (_are_sizes(shape) and len(shape) <= MAX_RANK):
        return f"has the shape {show(shape)}"
    if not (_are_sizes(offsets) and len(offsets) == 2):
        return f"has the offsets {show(offsets)}"
    byte_count = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != byte_count:
        return f"needs {byte_count} bytes but has the offsets {show(offsets)}"
    return ""


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**40 for value in values)
