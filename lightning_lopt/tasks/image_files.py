"""Labelled images from .npz archives and MNIST-style IDX files; the contents are checked before they are used."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from lightning_lopt.tasks.labelled_images import LabelledImages

Part = Literal["train", "test"]

_NPZ_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("images", "labels"),
        ("inputs", "targets"),
        ("data", "target"),
        ("x", "y"),
    ),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_IDX_UINT8 = 0x08
_MAX_DEFLATE_RATIO = 1100
"""Deflate shrinks data at most about 1032-fold, so a header that claims a larger ratio is wrong."""


def from_npz(path: str | Path, part: Part = "train") -> LabelledImages:
    """Images and labels from a ``.npz`` archive, which is never unpickled.

    The names of the arrays may be x_train and y_train, train_images and train_labels, images and labels, inputs and
    targets, data and target, or x and y, in upper or lower case; for ``part="test"`` x_test and y_test, or
    test_images and test_labels. :meth:`LabelledImages.from_arrays` lists the accepted shapes and types.

    Raises:
        ValueError: if the file is missing, damaged, holds Python objects, or lacks such arrays.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/mine.npz", x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.array([0, 1, 2, 1]))
        ...     images = from_npz(f"{folder}/mine.npz")
        >>> images.name, images.shape, images.targets.tolist()
        ('mine', (1, 8, 8), [0, 1, 2, 1])
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of a .npz file.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name[: -len(".npy")].lower(): name for name in archive.namelist() if name.endswith(".npy")}
            for images, labels in _NPZ_KEYS[part]:
                if images in names and labels in names:
                    x, y = (_read_npy(archive, names[key], path) for key in (images, labels))
                    return LabelledImages.from_arrays(x, y, path.stem)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error}); write it again with numpy.savez.") from error
    accepted_pairs = ", ".join(f"{images}/{labels}" for images, labels in _NPZ_KEYS[part])
    raise ValueError(f"{path}: holds the arrays {sorted(names.values())}, but needs one pair of {accepted_pairs}.")


def _read_npy(archive: zipfile.ZipFile, member: str, path: Path) -> np.ndarray[Any, Any]:
    """One array of an archive; memory is allocated only after a check of the header against the size."""
    info = archive.getinfo(member)
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
            shape, _, dtype = read_header(file)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: {member} is not a NumPy array; write it again with numpy.savez.") from error
        if dtype.hasobject:
            raise ValueError(
                f"{path}: {member} holds Python objects, which could run code when loaded; save plain number arrays."
            )
        claimed, stored = math.prod(shape) * dtype.itemsize, info.file_size - file.tell()
        if min(shape, default=0) < 0 or claimed != stored or stored > _MAX_DEFLATE_RATIO * info.compress_size:
            raise ValueError(
                f"{path}: {member} claims {claimed} bytes of data but has room for {stored} in "
                f"{info.compress_size} compressed bytes; the file is damaged, get it again."
            )
    with archive.open(member) as file:
        try:
            array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path}: {member} cannot be read ({error}); write it again with numpy.savez.") from error
    return array


def is_idx_folder(folder: Path, part: Part = "train") -> bool:
    """Whether the folder holds MNIST-style image files of this part."""
    return any(folder.glob(f"*{_IDX_PREFIX[part]}-images?idx3-ubyte*"))


def from_idx(folder: str | Path, part: Part = "train") -> LabelledImages:
    """MNIST-style data: the files train-images-idx3-ubyte and train-labels-idx1-ubyte, which may end with .gz.

    Names with a prefix (``emnist-digits-train-...``) and with a dot before ``idx3`` are accepted as well;
    ``part="test"`` reads the files whose names contain t10k.

    Raises:
        ValueError: if a file is missing or damaged, or if several files match.

    Example:
        >>> import struct, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # four images of 8×8 pixels
        ...     images, labels = (Path(folder, f"train-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        ...     _ = images.write_bytes(struct.pack(">IIII", 2051, 4, 8, 8) + bytes(4 * 8 * 8))
        ...     _ = labels.write_bytes(struct.pack(">II", 2049, 4) + bytes([0, 1, 2, 1]))
        ...     from_idx(folder).targets
        tensor([0, 1, 2, 1])
    """
    folder = Path(folder)
    prefix = _IDX_PREFIX[part]
    images = _read_idx(_one_file(folder, f"{prefix}-images", "idx3-ubyte"), dims=3)
    labels = _read_idx(_one_file(folder, f"{prefix}-labels", "idx1-ubyte"), dims=1)
    return LabelledImages.from_arrays(images, labels, folder.resolve().name)


def _one_file(folder: Path, stem: str, suffix: str) -> Path:
    """The only file of this kind; the uncompressed file if there is a .gz file, too."""
    pattern = f"*{stem}?{suffix}"
    matches = sorted(folder.glob(pattern)) or sorted(folder.glob(f"{pattern}.gz"))
    if len(matches) != 1:
        matches_text = (
            f"there are {len(matches)}: {', '.join(file.name for file in matches)}" if matches else "there is none"
        )
        raise ValueError(f"{folder}: needs one file {stem}-{suffix} or {stem}-{suffix}.gz, but {matches_text}.")
    return matches[0]


def _read_idx(path: Path, dims: int) -> np.ndarray[Any, Any]:
    """An unsigned-byte IDX file with ``dims`` axes: magic number, sizes (big-endian uint32), then the bytes."""
    size = path.stat().st_size
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return _read_idx_stream(file, path, dims, None, _MAX_DEFLATE_RATIO * size)
        with path.open("rb") as file:
            return _read_idx_stream(file, path, dims, size, size)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: not a readable gzip file ({error}); get it again.") from error


def _read_idx_stream(
    file: IO[bytes] | gzip.GzipFile, path: Path, dims: int, exact: int | None, at_most: int
) -> np.ndarray[Any, Any]:
    """Read an open IDX file of ``exact`` bytes, or, if its size is unknown, of at most ``at_most`` bytes."""
    length = 4 + 4 * dims
    header = file.read(length)
    if len(header) < length or header[:2] != b"\0\0" or header[3] != dims:
        raise ValueError(f"{path}: not an IDX file with {dims} axes (it begins with {header[:4].hex()}); get it again.")
    if header[2] != _IDX_UINT8:
        raise ValueError(f"{path}: its values are of IDX type 0x{header[2]:02x}; only unsigned bytes (0x08) are read.")
    shape = struct.unpack(f">{dims}I", header[4:])
    data_bytes = math.prod(shape)
    if length + data_bytes > at_most or (exact is not None and length + data_bytes != exact):
        size_of_file = f"holds {exact} bytes" if exact is not None else f"can hold at most {at_most} bytes"
        raise ValueError(
            f"{path}: its header asks for {length + data_bytes} bytes but the file {size_of_file}; get it again."
        )
    content = file.read(data_bytes + 1)
    if len(content) != data_bytes:
        number_read = "more than that" if len(content) > data_bytes else str(len(content))
        raise ValueError(
            f"{path}: its header asks for {data_bytes} bytes of data but there are {number_read}; get it again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
