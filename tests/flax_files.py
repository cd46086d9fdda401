"""Files as flax.serialization.to_bytes writes them, written by hand: msgpack with arrays as extensions."""

import struct

import numpy as np


class Written(bytes):
    """What stands in a file as it is."""


def pack(value):
    """msgpack of a tree: dicts, texts, numbers, bytes, tuples, None and arrays; shortest forms, as msgpack writes."""
    if isinstance(value, Written):
        return value
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return (bytes([0xA0 | len(data)]) if len(data) < 32 else sized((0xD9, 0xDA, 0xDB), len(data))) + data
    if isinstance(value, bytes):
        return sized((0xC4, 0xC5, 0xC6), len(value)) + value
    if isinstance(value, tuple):
        return counted(0x90, 0xDC, len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        return counted(0x80, 0xDE, len(value)) + b"".join(pack(key) + pack(x) for key, x in value.items())
    return extension(1, array(value))


def array(value):
    """Inside of the extension for an array."""
    value = np.asarray(value)
    return pack((tuple(value.shape), value.dtype.name, value.tobytes()))


def extension(kind, data):
    if len(data) in (1, 2, 4, 8, 16):
        return bytes([0xD4 + len(data).bit_length() - 1, kind]) + data
    return sized((0xC7, 0xC8, 0xC9), len(data)) + bytes([kind]) + data


def integer(value):
    if 0 <= value < 128:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack("b", value)
    forms = "BHIQ" if value > 0 else "bhiq"
    for mark, form in enumerate(forms, 0xCC if value > 0 else 0xD0):
        try:
            return bytes([mark]) + struct.pack(f">{form}", value)
        except struct.error:
            pass
    raise ValueError(value)


def sized(marks, size):
    kind = 0 if size < 2**8 else 1 if size < 2**16 else 2
    return bytes([marks[kind]]) + struct.pack(">" + "BHI"[kind], size)


def counted(short, long, count):
    if count < 16:
        return bytes([short | count])
    return bytes([long]) + struct.pack(">H", count) if count < 2**16 else bytes([long + 1]) + struct.pack(">I", count)


def tree_of(theta):
    """The tree of arrays as recordings call them: "~" is written mlp there, and "/" inside a key as "."."""
    tree = {}
    for name, value in theta.items():
        *path, leaf = ["~" if part == "mlp" else part.replace(".", "/") for part in name.split("/")]
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[leaf] = np.asarray(value)
    return tree
