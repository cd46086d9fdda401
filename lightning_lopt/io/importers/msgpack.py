"""Reader of flax files: nested msgpack maps from texts to arrays, numbers or texts. Other msgpack values are refused.

``flax.serialization.to_bytes`` turns a pytree into nested maps. Each leaf is an extension of type 1, which contains a
msgpack array of shape, name of the type, and bytes in C order. https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple, TypeAlias

from lightning_lopt.errors import RuleFileError, show
from lightning_lopt.io.files import TAKE_AGAIN
from lightning_lopt.io.header import LFS_POINTER, MAX_RANK

MAX_DEPTH = 16
MAX_NODES = 10_000
MAX_TEXT = 4096  # bytes
SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes per entry, by type of an array."""

CHUNKED = "__msgpack_chunked_array__"
NAMED_TUPLE = {"name", "fields", "values"}  # keys in files of flax before 2022
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's types of extensions


class Array(NamedTuple):
    """An array as bytes: name of the type, shape, and entries in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


MsgpackLeaf: TypeAlias = Array | str | int | float | None
MsgpackTree: TypeAlias = dict[str, Any]
"""Subtrees and leaves by name."""


class _Damaged(Exception):
    """An error in a file; the message does not contain the name of the file."""


def read_tree(data: bytes, label: str) -> MsgpackTree:
    """The tree of ``data``. Arrays are not copied, except arrays that flax has split into pieces.

    Raises:
        RuleFileError: if ``data`` is not exactly one map in the format of flax. Pickles are refused without unpickling.
    """
    if (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or data[:4] == b"PK\x03\x04":
        raise RuleFileError(
            f"{label} is a pickle, which can run any code when it is read; on a machine where you trust the file, save "
            "its θ with flax.serialization.to_bytes or as safetensors."
        )
    if data.startswith(LFS_POINTER):
        raise RuleFileError(f"{label} is a Git LFS pointer instead of the weights; fetch them with 'git lfs pull'.")
    try:
        reader = _Reader(memoryview(data))
        tree = reader.value(MAX_DEPTH)
        if not isinstance(tree, dict):
            raise _Damaged(f"it holds {show(tree)} instead of a map")
        if reader.position != len(data):
            raise _Damaged(f"{len(data) - reader.position} bytes follow its end")
    except _Damaged as error:
        raise RuleFileError(f"{label} is not an intact flax file ({error}); {TAKE_AGAIN}.") from None
    return tree


class _Reader:
    """Reads values from ``data``, one after the other; ``position`` is the index of the next byte."""

    def __init__(self, data: memoryview, nodes: int = MAX_NODES) -> None:
        self.data, self.position, self.nodes = data, 0, nodes

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.position:
            raise _Damaged(f"{count} bytes are expected at byte {self.position}, but the file ends before")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(f">{form}", self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> MsgpackTree | MsgpackLeaf:
        """Read a map, a number, a text, ``None``, or an extension."""
        self.nodes -= 1
        if self.nodes < 0:
            raise _Damaged(f"it has more than {MAX_NODES} values")
        start, mark = self.position, self.number("B")
        if mark <= 0x7F or mark >= 0xE0:
            self.position = start
            return self.integer()
        if mark <= 0x8F or mark in (0xDE, 0xDF):
            return self.map(mark & 0xF if mark <= 0x8F else self.number("H" if mark == 0xDE else "I"), depth)
        if mark == 0xC0:
            return None
        if mark in (0xC2, 0xC3):
            return bool(mark == 0xC3)
        if mark in _NUMBERS:
            number: int | float = self.number(_NUMBERS[mark])
            return number
        if 0xA0 <= mark <= 0xBF or mark in _TEXTS:
            self.position = start
            return self.text()
        if 0xD4 <= mark <= 0xD8 or mark in _EXTENSIONS:
            length = 1 << (mark - 0xD4) if mark >= 0xD4 else self.number(_EXTENSIONS[mark])
            return self.extension(self.number("b"), length)
        raise _Damaged(f"byte {start} begins a value of kind {mark:#x}, which flax does not write there")

    def map(self, count: int, depth: int) -> MsgpackTree | MsgpackLeaf:
        if depth == 0:
            raise _Damaged(f"it is nested more than {MAX_DEPTH} levels deep")
        if 2 * count > len(self.data) - self.position:
            raise _Damaged(f"{count} entries are announced, but only {len(self.data) - self.position} bytes are left")
        tree: MsgpackTree = {}
        for _ in range(count):
            key = self.text()
            if key in tree:
                raise _Damaged(f"the key {show(key)} occurs twice")
            tree[key] = self.value(depth - 1)
        if CHUNKED in tree:
            return _joined(tree)
        return _by_field(tree) if tree.keys() == NAMED_TUPLE else tree

    def integer(self) -> int:
        """Read an integer; other values are refused."""
        mark: int = self.number("B")
        if mark <= 0x7F or mark >= 0xE0:
            return mark if mark <= 0x7F else mark - 256
        if not 0xCC <= mark <= 0xD3:
            raise _Damaged(f"byte {self.position - 1} of an array does not begin an integer, which is expected there")
        number: int = self.number(_NUMBERS[mark])
        return number

    def text(self) -> str:
        mark = self.number("B")
        if not (0xA0 <= mark <= 0xBF or mark in _TEXTS):
            raise _Damaged(f"byte {self.position - 1} does not begin a text, which is expected there")
        length = mark & 0x1F if mark <= 0xBF else self.number(_TEXTS[mark])
        if length > MAX_TEXT:
            raise _Damaged(f"a text of {length} bytes is announced, more than the {MAX_TEXT} that are read")
        try:
            return bytes(self.take(length)).decode()
        except UnicodeDecodeError:
            raise _Damaged(f"the text before byte {self.position} is not UTF-8") from None

    def extension(self, kind: int, length: int) -> MsgpackLeaf:
        if kind not in (_ARRAY, _SCALAR):
            value = "a complex number" if kind == _COMPLEX else f"an extension of type {kind}"
            raise _Damaged(f"it contains {value}, but only arrays are read")
        content = _Reader(self.take(length), self.nodes)
        array = content.array()
        if content.position != length:
            raise _Damaged(f"an array takes {content.position} of its {length} bytes")
        if kind == _SCALAR and array.shape:
            raise _Damaged(f"a scalar has the shape {list(array.shape)}")
        return array

    def array(self) -> Array:
        """Read the content of an extension: [shape, name of the type, bytes]."""
        if self.items() != 3:
            raise _Damaged("an array does not consist of shape, type and bytes")
        rank = self.items()
        if rank > MAX_RANK:
            raise _Damaged(f"an array has {rank} axes, more than {MAX_RANK}")
        shape = tuple(self.integer() for _ in range(rank))
        if not all(0 <= size < 2**40 for size in shape):
            raise _Damaged(f"an array has the shape {show(shape)}")
        dtype = self.text()
        if dtype not in SIZES:
            raise _Damaged(f"an array has the type {show(dtype)}, which is none of {', '.join(SIZES)}")
        mark = self.number("B")
        if mark not in _BYTES:
            raise _Damaged("an array has no bytes")
        data = self.take(self.number(_BYTES[mark]))
        byte_count = math.prod(shape) * SIZES[dtype]
        if byte_count != len(data):
            raise _Damaged(f"an array {dtype} {list(shape)} has {len(data)} bytes instead of {byte_count}")
        return Array(dtype, shape, data)

    def items(self) -> int:
        """Read the header of a msgpack array, and return the length of the array."""
        mark: int = self.number("B")
        if not 0x90 <= mark <= 0x9F:
            raise _Damaged("an array is not a msgpack array of shape, type and bytes")
        return mark & 0xF


_NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
_TEXTS = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_BYTES = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_EXTENSIONS = {0xC7: "B", 0xC8: "H", 0xC9: "I"}


def _listed(tree: Any) -> list[Any]:
    """The values of a map with the keys "0", "1", ...; flax represents a tuple by such a map."""
    if not isinstance(tree, dict) or tree.keys() != {str(index) for index in range(len(tree))}:
        raise _Damaged("the entries of a tuple are not numbered from 0 on")
    return [tree[str(index)] for index in range(len(tree))]


def _by_field(tree: MsgpackTree) -> MsgpackTree:
    """A named tuple in the format of an older flax, converted to the format of a newer flax."""
    fields, values = _listed(tree["fields"]), _listed(tree["values"])
    if len(fields) != len(values) or not all(isinstance(x, str) for x in fields) or len({*fields}) != len(fields):
        raise _Damaged("the fields and values of a named tuple do not match")
    return dict(zip(fields, values, strict=True))


def _joined(tree: MsgpackTree) -> Array:
    """The whole array of a map of pieces; flax splits large arrays into pieces."""
    if tree.keys() != {CHUNKED, "shape", "chunks"}:
        raise _Damaged("an array in pieces does not consist of shape and pieces")
    shape, pieces = tuple(_listed(tree["shape"])), _listed(tree["chunks"])
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise _Damaged(f"an array in pieces has the shape {show(shape)}")
    if not pieces or not all(isinstance(piece, Array) and piece.dtype == pieces[0].dtype for piece in pieces):
        raise _Damaged("the pieces of an array are not arrays of one type")
    data = b"".join(piece.data for piece in pieces)
    if math.prod(shape) * SIZES[pieces[0].dtype] != len(data):
        raise _Damaged(f"the pieces of an array {list(shape)} have {len(data)} bytes together")
    return Array(pieces[0].dtype, shape, memoryview(data))
