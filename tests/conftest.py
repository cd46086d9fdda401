"""What several folders of tests need."""

import json
import time
import zlib

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are skipped without one, also where ``-m slow`` selects them."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def wandb_records(data):
    """Records of a run file: after 7 bytes a LevelDB log, 32 KiB blocks of pieces with checksum, length and type.

    A piece that is not all there, or whose checksum is not yet that of its bytes, is still being written: the last one.
    """
    assert data[:4] == b":W&B"
    at, pieces = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + 7 : at + 7 + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(data[at + 6 : at + 7])) != int.from_bytes(
            data[at : at + 4], "little"
        ):
            return
        pieces += piece
        at += 7 + length
        if kind in (1, 4):  # whole, or last piece
            yield pieces
            pieces = b""


def whole_run(folder):
    """All records of a run, once its file has its end or has not changed for five seconds: others write it."""
    from wandb.proto import wandb_internal_pb2

    records, before, quiet = [], None, 0
    for _ in range(60):
        files = [path.read_bytes() for path in folder.glob("*.wandb")]
        records = [wandb_internal_pb2.Record.FromString(data) for file in files if file for data in wandb_records(file)]
        quiet = quiet + 1 if records and files == before else 0
        if quiet == 10 or any(record.HasField("exit") for record in records):
            break
        before = files
        time.sleep(0.5)
    return records


@pytest.fixture
def wandb_run():
    """A function: the folder of an offline run to its rows of history and the names of its artifacts."""

    def read(folder):
        records = whole_run(folder)
        history = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        return history, [record.artifact.name for record in records if record.HasField("artifact")]

    return read


@pytest.fixture
def one_thread():
    """For tests that fork: the threads of OpenMP do not live on in the child, which would wait for them for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
