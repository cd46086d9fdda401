"""Sources of labelled images: scikit-learn's digits, arrays, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from lightning_lopt.extras import how_to_install
from lightning_lopt.tasks.image_files import Part, from_idx, from_npz, is_idx_folder
from lightning_lopt.tasks.labelled_images import LabelledImages

DataLike: TypeAlias = "LabelledImages | str | Path | Sequence[LabelledImages | str | Path]"

__all__ = ["DataLike", "LabelledImages", "Part", "from_idx", "from_npz", "load_digits_data", "load_images", "resolve"]


def load_digits_data() -> LabelledImages:
    """1797 handwritten digits of 8×8 pixels in [0, 1], 10 classes, from scikit-learn.

    Raises:
        ImportError: if scikit-learn is not installed.

    Example:
        >>> digits = load_digits_data()
        >>> len(digits), digits.shape, digits.classes
        (1797, (1, 8, 8), 10)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the handwritten digits come with scikit-learn, which is not installed; "
            f"{how_to_install('examples')}, or pass your own data (a .npz file, an IDX folder)."
        ) from error
    digits = load_digits()
    return LabelledImages.from_arrays((digits.images / 16).astype("float32"), digits.target, "digits")


def load_images(source: str | Path, part: Part = "train") -> LabelledImages:
    """Labelled images by name or path, in any of the known formats.

    Args:
        source: ``"digits"``, a ``.npz`` file, or a folder with either IDX files or exactly one ``.npz`` file.
        part: which arrays or files to read if a source has several.

    Raises:
        ValueError: if there is no usable file, or a file is damaged.
        ImportError: if ``source`` is ``"digits"`` and scikit-learn is not installed.

    Example:
        >>> digits = load_images("digits")  # or a path: "mnist.npz", a folder of IDX files
        >>> len(digits), digits.shape
        (1797, (1, 8, 8))
    """
    if source == "digits":
        return load_digits_data()
    path = Path(source)
    if path.is_dir():
        if is_idx_folder(path, part):
            return from_idx(path, part)
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1:
            return from_npz(archives[0], part)
        contents = f"{len(archives)} .npz files" if archives else "neither IDX files nor a .npz file"
        raise ValueError(
            f"{path}: the folder holds {contents}; give the path of one .npz file, or a folder of IDX files."
        )
    if not path.exists():
        raise ValueError(f'{path}: no such file or folder; give "digits", a .npz file or a folder of IDX files.')
    if path.suffix != ".npz":
        raise ValueError(f"{path}: not a .npz file; give a .npz file, or the folder that holds the IDX files.")
    return from_npz(path, part)


def resolve(data: DataLike | None) -> list[LabelledImages]:
    """A list of labelled images from one or several images, names or paths; ``None`` means the digits.

    Raises:
        ValueError: if the list is empty, or an entry cannot be loaded.

    >>> [images.name for images in resolve("digits")]
    ['digits']
    """
    if data is None:
        return [load_digits_data()]
    entries = [data] if isinstance(data, (LabelledImages, str, Path)) else list(data)
    if not entries:
        raise ValueError("data is an empty list; give labelled images, or None for the handwritten digits.")
    return [entry if isinstance(entry, LabelledImages) else load_images(entry) for entry in entries]
