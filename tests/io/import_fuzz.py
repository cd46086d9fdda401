"""Damages files of others at random and imports them, in a process of its own: ``python import_fuzz.py FOLDER COUNT``.

The process can take 64 MiB more than it has at the start, and ends if anything is run, opened for writing, or takes
long. Prints how many files were imported and how many refused, and the longest import in seconds of the
processor, as JSON.
"""

import contextlib
import json
import random
import resource
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from flax_files import pack
from safetensors.torch import save_file

from lightning_lopt.io import RuleFileError, import_rule
from lightning_lopt.io.importers import FLAX_KINDS, PYLO_KINDS

ROOM = 64 * 2**20
FORBIDDEN = ("exec", "compile", "pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.remove")
FLAX = {  # small files, so that most of their bytes are structure
    "adafac_mlp": {"hidden": 1},
    "celo": {"lstm_hidden": 1, "copies": 1, "hidden": 1},
    "mlp": {"hidden": 1},
    "nn_adam": {"lstm_hidden": 1},
    "rnn_mlp": {"lstm_hidden": 1, "hidden": 1},
    "celo2_base": {"hidden": 1},
}
PYLO = {
    "elo": {"hidden": 1},
    "celo2": {"hidden": 1},
    "velo": {"lstm_hidden": 1, "copies": 1, "hidden": 1},
}
LENGTHS = [0, 1, 2, 15, 16, 31, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
MARKS = [*range(0x80, 0xA0), *range(0xC0, 0xE0), 0, 0x7F, 0xA0, 0xBF, 0xFF]


def tensors(array_format, sizes):
    draws = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draws) for name, shape in array_format.shapes(**sizes).items()}


def flax_file(kind):
    """A tree of two levels, whose paths are those of the deeper trees of flax."""
    flat, tree = tensors(FLAX_KINDS[kind].format, FLAX[kind]), {}
    for name, value in flat.items():
        top, _, rest = name.partition("/")
        if rest:
            tree.setdefault(top, {})[rest] = value.numpy()
        else:
            tree[top] = value.numpy()
    return pack(tree)


def damaged(data, draw):
    """``data`` with one to three changes of the kinds that break readers."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(9)
        if kind == 0:  # a bit
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif kind == 1:  # truncation
            data = data[:at]
        elif kind == 2:  # a mark of msgpack in another's place
            data = data[:at] + bytes([draw.choice(MARKS)]) + data[at + 1 :]
        elif kind == 3:  # a length that is not true
            mark = draw.choice([0xDF, 0xDD, 0xDB, 0xC6, 0xC9, 0xDE, 0xDC, 0xDA, 0xC5, 0xC8])
            size = struct.pack(">I", draw.choice(LENGTHS)) if mark in (0xDF, 0xDD, 0xDB, 0xC6, 0xC9) else b"\xff\xff"
            data = data[:at] + bytes([mark]) + size + data[at + draw.choice([0, 1, 5]) :]
        elif kind == 4:  # deep nesting
            data = data[:at] + b"\x81\xa1a" * draw.choice([1, 20, 5000]) + data[at:]
        elif kind == 5:  # a piece twice, or somewhere else
            stop = min(len(data), at + draw.choice([1, 8, 64, 400]))
            to = draw.randrange(len(data) + 1)
            data = data[:to] + data[at:stop] + data[to:]
        elif kind == 6:  # a piece missing
            data = data[:at] + data[at + draw.choice([1, 2, 8, 64]) :]
        elif kind == 7:  # noise
            noise = draw.randbytes(draw.choice([1, 2, 4, 16]))
            data = data[:at] + noise + data[at + len(noise) :]
        else:  # integers of the header of safetensors, and texts
            old, new = draw.choice([(b"[1", b"[9999999999"), (b"F32", b"F64"), (b"float32", b"float64"), (b"w", b"b")])
            data = data.replace(old, new, draw.choice([1, 2]))
        data = data or b"\0"
    return data


def limit():
    """Allow no more than ``ROOM`` bytes of further memory."""
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, used + ROOM))


def guard(event, arguments):
    if event in FORBIDDEN:
        raise SystemExit(f"{event} {arguments!r}"[:300])


def main(folder, count):
    draw, found, longest = random.Random(0), Counter(), 0.0
    flax = [(kind, folder / "theta.state", flax_file(kind)) for kind in FLAX]
    pylo = []
    for kind, sizes in PYLO.items():
        save_file(tensors(PYLO_KINDS[kind].format, sizes), folder / "good.safetensors")
        pylo.append((kind, folder / "model.safetensors", (folder / "good.safetensors").read_bytes()))
    for kind, path, data in flax + pylo:  # everything is loaded that will be needed
        path.write_bytes(data)
        import_rule(path, rule=kind)
    with contextlib.suppress(RuleFileError):
        import_rule(folder / "none")
    limit()
    sys.addaudithook(guard)
    for number in range(count):
        kind, path, good = draw.choice(pylo if number % 6 == 0 else flax)
        path.write_bytes(damaged(good, draw))
        begin = time.process_time()
        try:
            rule = import_rule(path, rule=draw.choice([kind, None]))
        except RuleFileError as error:
            message = str(error)
            if not message.isprintable() or len(message) > 700 or "memory" in message:
                raise
            found["refused"] += 1
        else:
            assert all(torch.isfinite(value).all() for value in rule.state_dict().values())
            found["imported"] += 1
        longest = max(longest, time.process_time() - begin)
    print(json.dumps(found | {"longest": longest}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
