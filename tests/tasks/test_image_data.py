"""Labelled images: what is read is what was written, and everything else is refused with its sentence."""

import builtins
import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import LabelledImages, from_idx, from_npz, load_digits_data, load_images
from lightning_lopt.tasks.data import resolve

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
X = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
Y = np.array([0, 1, 2, 0, 1, 2])


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, images=None, labels=None, zipped=False, prefix="train"):
    images, labels = idx_bytes(X) if images is None else images, idx_bytes(Y) if labels is None else labels
    for stem, content in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        (folder / f"{stem}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.mark.parametrize(
    "layout",
    [X, X[:, None], X[..., None], X.reshape(6, 16), (X / 255).astype("float64"), (X / 255).astype("float32")],
    ids=["NHW", "NCHW", "NHWC", "ND", "float64", "float32"],
)
def test_layouts_give_the_same_images(layout):
    data = LabelledImages.from_arrays(layout, Y, "toy")
    torch.testing.assert_close(data.inputs, torch.from_numpy(X[:, None] / np.float32(255)))
    assert (data.targets.tolist(), data.classes, data.shape, data.features, len(data)) == (list(Y), 3, (1, 4, 4), 16, 6)
    assert data.flat.shape == (6, 16)


def test_colour_channels_are_moved_to_the_front():
    x = np.random.default_rng(0).integers(0, 255, (6, 5, 5, 3), dtype=np.uint8)
    data = LabelledImages.from_arrays(torch.from_numpy(x), Y[:, None])
    assert torch.equal(data.inputs, torch.from_numpy(x).permute(0, 3, 1, 2) / 255)


BAD_ARRAYS = [
    (X.astype(np.int64), Y, "images are int64; convert them to uint8"),
    (X[:0], Y, "there are no images"),
    (X[:, :3].reshape(6, 12), Y, "rows of 12 numbers are not square images"),
    (X[0, 0], Y, r"images have shape \(4,\); use \(N, H, W\)"),
    (np.zeros((6, 5, 5, 5), np.uint8), Y, r"images have shape \(6, 5, 5, 5\).*1 to 4 channels"),
    (np.full((6, 4, 4), np.nan), Y, "images hold NaN or infinite values"),
    (np.full((6, 4, 4), 1e300), Y, "images hold NaN or infinite values"),
    (X, Y.astype(float), "labels are float64; use integers"),
    (X, Y[:, None] * np.ones((1, 3), int), r"labels have shape \(6, 3\)"),
    (X, Y[:0], "there are no labels"),
    (X, Y[:5], "6 images but 5 labels"),
    (X, Y + 1, "the smallest label is 1; renumber the labels from 0"),
    (X, Y - 1, "the smallest label is -1"),
    (X, Y * 10_000, "the largest label is 20000; labels must be below 10000"),
    (X, Y * 0, "1 classes; labels must have between 2 and"),
]


@pytest.mark.parametrize(("x", "y", "sentence"), BAD_ARRAYS, ids=[sentence[:28] for *_, sentence in BAD_ARRAYS])
def test_bad_arrays_are_refused(tmp_path, x, y, sentence):
    with pytest.raises(ValueError, match=f"^toy: .*{sentence}"):
        LabelledImages.from_arrays(x, y, "toy")
    np.savez(tmp_path / "toy.npz", x=x, y=y)
    with pytest.raises(ValueError, match=f"^toy: .*{sentence}"):
        from_npz(tmp_path / "toy.npz")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": torch.zeros(6, 4, 4)}, "inputs must be float32 of shape"),
        ({"inputs": torch.zeros(6, 1, 4, 4).double()}, "got torch.float64"),
        ({"targets": torch.zeros(6)}, "targets must be int64"),
        ({"targets": torch.full((6,), 3)}, "labels run from 3 to 3, outside 0 to 2"),
        ({"targets": torch.full((6,), -1)}, "labels run from -1 to -1"),
    ],
)
def test_the_value_itself_is_checked(change, sentence):
    good = {"inputs": torch.zeros(6, 1, 4, 4), "targets": torch.from_numpy(Y), "classes": 3, "name": "toy"}
    LabelledImages(**good)
    with pytest.raises(ValueError, match=sentence):
        LabelledImages(**good | change)


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x", "y"), ("X", "y"), ("x_train", "y_train"), ("train_images", "train_labels")]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path, keys, save):
    save(tmp_path / "toy.npz", **dict(zip(keys, (X, Y), strict=True)))
    for source in (tmp_path / "toy.npz", tmp_path, str(tmp_path)):
        data = load_images(source)
        assert torch.equal(data.inputs, torch.from_numpy(X[:, None]) / 255)
        assert (data.targets.tolist(), data.name) == (list(Y), "toy")


def test_npz_parts(tmp_path):
    np.savez(tmp_path / "toy.npz", x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    assert (len(from_npz(tmp_path / "toy.npz")), len(from_npz(tmp_path / "toy.npz", "test"))) == (6, 3)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_round_trip(tmp_path, zipped):
    write_idx(tmp_path, zipped=zipped)
    write_idx(tmp_path, idx_bytes(X[:3]), idx_bytes(Y[:3]), zipped, "t10k")
    for data in (from_idx(tmp_path), load_images(tmp_path)):
        assert torch.equal(data.inputs, torch.from_numpy(X[:, None]) / 255)
        assert (data.targets.tolist(), data.name) == (list(Y), tmp_path.name)
    assert len(load_images(tmp_path, "test")) == 3


class Bomb:
    """An object whose unpickling would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (builtins.open, (str(self.path), "w"))


def test_pickled_arrays_are_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    np.savez(tmp_path / "toy.npz", x=np.array([Bomb(trace)] * 6, dtype=object), y=Y)
    with pytest.raises(ValueError, match=r"toy.npz: x.npy holds Python objects, which could run code.*save plain"):
        from_npz(tmp_path / "toy.npz")
    assert not trace.exists()


def npy_bytes(shape: tuple[int, ...], content: bytes = b"\0" * 16) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (npy_bytes((10**12, 28, 28)), "x.npy claims 784000000000000 bytes of data but has room for 16"),
        (npy_bytes((-4, -4)), "x.npy claims 16 bytes"),
        (npy_bytes((4, 4), b"\0" * 15), "x.npy claims 16 bytes of data but has room for 15"),
        (b"not an array at all", "x.npy is not a NumPy array"),
        (b"", "x.npy is not a NumPy array"),
        (npy_bytes((0, 10**30), b""), "x.npy cannot be read"),
    ],
    ids=["huge", "negative", "short", "text", "empty", "overflow"],
)
def test_damaged_arrays_are_refused(tmp_path, member, sentence):
    np.savez(tmp_path / "toy.npz", y=Y)
    with zipfile.ZipFile(tmp_path / "toy.npz", "a") as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(ValueError, match=f"toy.npz: {sentence}"):
        from_npz(tmp_path / "toy.npz")


def test_any_flipped_byte_is_read_or_refused(tmp_path):
    np.savez_compressed(tmp_path / "good.npz", x=X, y=Y)
    content = (tmp_path / "good.npz").read_bytes()
    rng, refusals = np.random.default_rng(0), []
    for position in rng.choice(len(content), 150, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        (tmp_path / "bad.npz").write_bytes(damaged)
        try:
            data = from_npz(tmp_path / "bad.npz")
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert torch.equal(data.inputs, torch.from_numpy(X[:, None]) / 255)
    assert len(refusals) > 50
    assert all("bad" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b"PK nonsense"), "not a readable .npz file"),
        (
            lambda path: np.savez(path, x=X, z=Y),
            r"holds the arrays \['x.npy', 'z.npy'\], but needs one pair of x_train",
        ),
        (lambda path: path.mkdir(), "no such file|neither IDX files nor a .npz file"),
        (lambda path: None, "no such file or folder; give"),
    ],
    ids=["nonsense", "keys", "folder", "missing"],
)
def test_unusable_npz(tmp_path, write, sentence):
    write(tmp_path / "toy.npz")
    with pytest.raises(ValueError, match=sentence):
        load_images(tmp_path / "toy.npz")
    with pytest.raises(ValueError, match=r"toy\.npz"):
        from_npz(tmp_path / "toy.npz")


BAD_IDX = [
    ({"images": idx_bytes(X)[:-1]}, "its header asks for 112 bytes but the file holds 111 bytes"),
    ({"images": idx_bytes(X) + b"\0"}, "its header asks for 112 bytes but the file holds 113 bytes"),
    ({"images": b"\0\0\x08\x03" + b"\xff" * 12}, "bytes but the file holds 16 bytes"),
    ({"images": b"\0\0\x0d\x03" + idx_bytes(X)[4:]}, "IDX type 0x0d; only unsigned bytes"),
    ({"images": idx_bytes(Y)}, "images-idx3-ubyte: not an IDX file with 3 axes"),
    ({"images": b"\0\0"}, "not an IDX file"),
    ({"labels": b"hello, world"}, r"not an IDX file with 1 axes \(it begins with 68656c6c\)"),
    ({"labels": idx_bytes(Y[:4])}, "6 images but 4 labels"),
    ({"labels": idx_bytes(Y + 1)}, "the smallest label is 1"),
    ({"images": idx_bytes(X)[:-1], "zipped": True}, "asks for 96 bytes of data but there are 95"),
    ({"images": idx_bytes(X) + b"\0", "zipped": True}, "asks for 96 bytes of data but there are more than that"),
    ({"images": b"\0\0\x08\x03" + b"\xff" * 12, "zipped": True}, "the file can hold at most"),
]


@pytest.mark.parametrize(("content", "sentence"), BAD_IDX)
def test_damaged_idx(tmp_path, content, sentence):
    write_idx(tmp_path, **content)
    with pytest.raises(ValueError, match=sentence):
        from_idx(tmp_path)


def test_damaged_gzip(tmp_path):
    write_idx(tmp_path, zipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    for content in (file.read_bytes()[:-9], b"not gzip", b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"images-idx3-ubyte.gz: not (a readable gzip|an IDX) file"):
            from_idx(tmp_path)


def test_missing_and_ambiguous_files(tmp_path):
    with pytest.raises(ValueError, match=r"needs one file train-images-idx3-ubyte or .*, but there is none"):
        from_idx(tmp_path)
    write_idx(tmp_path)
    (tmp_path / "fashion-train-images-idx3-ubyte").write_bytes(idx_bytes(X))
    with pytest.raises(ValueError, match="but there are 2: fashion-train"):
        from_idx(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"neither IDX files nor a \.npz file"):
        load_images(empty)
    for name in ("a.npz", "b.npz"):
        np.savez(empty / name, x=X, y=Y)
    with pytest.raises(ValueError, match=r"the folder holds 2 \.npz files"):
        load_images(empty)
    with pytest.raises(ValueError, match=r"not a \.npz file"):
        load_images(tmp_path / "train-images-idx3-ubyte")


def test_digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    data = load_images("digits")
    assert (data.shape, len(data), data.classes, data.name) == ((1, 8, 8), 1797, 10, "digits")
    assert (data.inputs.min(), data.inputs.max()) == (0.0, 1.0)
    assert [one.name for one in resolve(["digits", data])] == ["digits", "digits"]


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[examples\]"'):
        load_digits_data()


def test_standardised():
    x = np.random.default_rng(0).random((50, 2, 4, 4), dtype=np.float32) * 3 + 5
    x[:, 1] = 7.0
    data = LabelledImages.from_arrays(x, np.arange(50) % 2).standardised()
    assert data.inputs[:, 0].mean().abs() < 1e-5
    assert data.inputs[:, 0].square().mean().item() == pytest.approx(1.0, abs=1e-4)
    assert not data.inputs[:, 1].any()


def test_resized():
    data = LabelledImages.from_arrays(X / 255.0, Y)
    assert data.resized(4) is data
    halves = data.resized(2)
    torch.testing.assert_close(halves.inputs[0, 0, 0, 0], data.inputs[0, 0, :2, :2].mean())
    assert data.resized(7).shape == (1, 7, 7)
    with pytest.raises(ValueError, match="cannot resize to 0 pixels"):
        data.resized(0)


def test_split_is_disjoint_complete_and_repeatable(blobs):
    train, valid = blobs.split(0.25, generator(0))
    assert (len(train), len(valid)) == (90, 30)
    both = torch.cat([train.flat, valid.flat])
    assert len(both.unique(dim=0)) == 120
    assert torch.equal(blobs.split(0.25, generator(0))[1].inputs, valid.inputs)
    assert not torch.equal(blobs.split(0.25, generator(1))[1].inputs, valid.inputs)
    assert [len(part) for part in blobs.split(0.25, generator(0), max_valid=7)] == [113, 7]
    assert [len(part) for part in blobs.split(0.001, generator(0))] == [119, 1]


@pytest.mark.parametrize(
    ("count", "fraction", "limit", "sentence"),
    [
        (9, 0.0, None, r"valid_fraction must lie in \(0, 1\), got 0.0"),
        (9, 1.0, None, "valid_fraction"),
        (9, 0.5, 0, "max_valid must be 1 or more, got 0"),
        (1, 0.5, None, "one example cannot be split"),
    ],
)
def test_impossible_splits(blobs, count, fraction, limit, sentence):
    with pytest.raises(ValueError, match=sentence):
        blobs.take(torch.arange(count)).split(fraction, generator(0), limit)


@pytest.mark.parametrize(
    ("name", "part", "shape", "count"),
    [("mnist10k", "train", (1, 28, 28), 10_000), ("cifar10_16x16", "test", (3, 16, 16), 10_000)],
)
def test_real_files(name, part, shape, count):
    path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/data")
    data = load_images(path, part)
    assert (data.shape, len(data), data.classes) == (shape, count, 10)
