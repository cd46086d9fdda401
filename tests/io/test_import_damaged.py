"""Files of others that are damaged, foreign or hostile are refused in one sentence that says what is wrong."""

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from flax_files import Written, array, extension, pack
from rule_folders import canary_pickle, same
from safetensors.torch import save_file

from lightning_lopt import MLPRule
from lightning_lopt.io import RuleFileError, import_rule
from lightning_lopt.io.importers import FLAX_KINDS

LAYER = "mlp/~/linear_{}"


def theta(hidden=4, dtype=np.float32):
    """The tree of an MLP rule, as haiku keeps it."""
    draws, sizes = np.random.default_rng(0), (19, hidden, hidden, 2)
    layers = {}
    for layer in range(3):
        shape = sizes[layer : layer + 2]
        layers[LAYER.format(layer)] = {
            "w": draws.normal(size=shape).astype(dtype),
            "b": draws.normal(size=shape[1]).astype(dtype),
        }
    return layers


def written(tmp_path, data):
    path = tmp_path / "theta.state"
    path.write_bytes(data)
    return path


def refusal(*sources, **options) -> str:
    with pytest.raises(RuleFileError) as caught:
        import_rule(*sources, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert message.endswith(".")
    return message


def test_all_forms_in_which_theta_is_kept_are_read(tmp_path):
    """θ alone, the parameter checkpoint of google/learned_optimization, its oldest tuple; types; pieces; scalars."""
    tree = theta()
    plain = import_rule(written(tmp_path, pack(tree)))
    first = tree[LAYER.format(0)]
    assert torch.equal(plain.state_dict()["network.inner_0"], torch.tensor(first["w"][:8].T))
    for other in ({"params": tree, "gen_id": "a-b", "step": 10**6}, {"0": tree, "1": "", "2": 0}):
        assert same(import_rule(written(tmp_path, pack(other))), plain)
    assert same(import_rule(written(tmp_path, pack({"params": tree, "gen_id": "", "step": np.int32(7)}))), plain)

    flat, shape = first["w"].reshape(-1), first["w"].shape
    chunks = {"0": flat[:30], "1": flat[30:]}
    pieces = {"__msgpack_chunked_array__": True, "shape": dict(zip("01", shape, strict=True)), "chunks": chunks}
    cut = tree | {LAYER.format(0): {"w": pieces, "b": first["b"]}}
    assert same(import_rule(written(tmp_path, pack(cut))), plain)

    exact = import_rule(written(tmp_path, pack(theta(dtype=np.float64))))
    assert exact.state_dict()["network.weight_1"].dtype == torch.float64
    halves = import_rule(written(tmp_path, pack(theta(dtype=np.float16))))
    assert torch.equal(
        halves.state_dict()["network.bias_1"], torch.tensor(theta(dtype=np.float16)[LAYER.format(1)]["b"]).float()
    )


def test_bfloat16(tmp_path):
    def short(value):
        raw = torch.tensor(value).bfloat16().view(torch.int16).numpy().tobytes()
        return Written(extension(1, pack((tuple(value.shape), "bfloat16", raw))))

    tree = theta()
    packed = {path: {name: short(value) for name, value in layer.items()} for path, layer in tree.items()}
    rule = import_rule(written(tmp_path, pack(packed)))
    expected = torch.tensor(tree[LAYER.format(2)]["b"]).bfloat16().float()
    assert torch.equal(rule.state_dict()["network.bias_2"], expected)


def test_named_tuple_of_an_older_flax(tmp_path):
    draws = np.random.default_rng(0)
    kind = FLAX_KINDS["nn_adam"]
    arrays = {path: draws.normal(size=shape).astype("f4") for path, shape in kind.format.shapes(lstm_hidden=2).items()}
    tree, state = {}, {}
    for path, value in arrays.items():
        top, _, rest = path.partition("/")
        if top == "lstm_init_state":
            state[rest] = value
        elif rest:
            module, _, leaf = rest.rpartition("/")
            tree.setdefault(top, {}).setdefault(module, {})[leaf] = value
        else:
            tree[top] = value
    newer = import_rule(written(tmp_path, pack(tree | {"lstm_init_state": state})))
    older = {"name": "LSTMState", "fields": {"0": "hidden", "1": "cell"}}
    older["values"] = {"0": state["hidden"], "1": state["cell"]}
    assert same(import_rule(written(tmp_path, pack(tree | {"lstm_init_state": older}))), newer)
    older["fields"] = {"0": "hidden", "1": "hidden"}
    message = refusal(written(tmp_path, pack(tree | {"lstm_init_state": older})))
    assert "the fields and values of a named tuple do not match" in message


def zip_of_torch() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, file)
    return file.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_not_opened(protocol, tmp_path):
    touched = tmp_path / "touched"
    for data in (canary_pickle(touched), pickle.dumps(theta(), protocol), zip_of_torch()):
        assert "is a pickle, which can run any code when it is read; on a machine where you trust" in refusal(
            written(tmp_path, data)
        )
    assert not touched.exists()
    old = pickle.dumps({"a": 1}, 0)
    assert "is not an intact flax file (it holds 40 instead of a map)" in refusal(written(tmp_path, old))


def bomb(depth: int) -> bytes:
    return (b"\x81\xa1a" * depth) + b"\xc0"


def arrays_in_shapes(depth: int) -> bytes:
    data = b"\x00"
    for _ in range(depth):
        data = extension(1, b"\x93\x91" + data + b"\xa7float32\xc4\x00")
    return b"\x81\xa1a" + data


GOOD = pack(theta())
ONE = {"a": np.zeros(3, "f4")}
DAMAGED = {
    "nothing": (b"", "1 bytes are expected at byte 0, but the file ends before"),
    "truncated": (GOOD[:-1], "21 bytes are expected at byte"),
    "longer": (GOOD + b"\xc0", "1 bytes follow its end"),
    "array instead of map": (b"\x93\x01\x02\x03", "byte 0 begins a value of kind 0x93, which flax does not write"),
    "reserved byte": (b"\x81\xa1a\xc1", "byte 3 begins a value of kind 0xc1"),
    "bytes alone": (b"\x81\xa1a\xc4\x01x", "kind 0xc4"),
    "giant map": (b"\xdf\xff\xff\xff\xff\xa1a", "4294967295 entries are announced, but only 2 bytes are left"),
    "giant text": (b"\x81\xdb\xff\xff\xff\xff", "a text of 4294967295 bytes is announced"),
    "giant extension": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "4294967295 bytes are expected at byte"),
    "nested": (bomb(17), "it is nested more than 16 levels deep"),
    "very nested": (bomb(100_000), "it is nested more than 16 levels deep"),
    "nested in shapes": (arrays_in_shapes(3000), "of an array does not begin an integer, which is expected there"),
    "many": (pack({"a": {str(i): i for i in range(10_001)}}), "it has more than 10000 values"),
    "number as key": (b"\x81\x01\x01", "byte 1 does not begin a text"),
    "key twice": (b"\x82\xa1a\x01\xa1a\x01", "the key 'a' occurs twice"),
    "not UTF-8": (b"\x81\xa1\xff\x01", "the text before byte 3 is not UTF-8"),
    "complex": (b"\x81\xa1a" + extension(2, b"\x92\x01\x02"), "it contains a complex number"),
    "timestamp": (b"\x81\xa1a" + extension(-1 & 0xFF, bytes(4)), "an extension of type -1"),
    "unknown extension": (b"\x81\xa1a" + extension(42, b"xxx"), "an extension of type 42"),
    "scalar with axes": (b"\x81\xa1a" + extension(3, array(ONE["a"])), "a scalar has the shape [3]"),
    "bytes after the array": (b"\x81\xa1a" + extension(1, array(ONE["a"]) + b"\x00"), "an array takes 25 of its 26"),
    "object array": (
        b"\x81\xa1a" + extension(1, pack(((1,), "object", bytes(8)))),
        "an array has the type 'object', which is none of",
    ),
    "structured array": (b"\x81\xa1a" + extension(1, pack(((1,), "[('a','O')]", bytes(8)))), "has the type"),
    "shape and bytes": (
        b"\x81\xa1a" + extension(1, pack(((2, 3), "float32", bytes(8)))),
        "an array float32 [2, 3] has 8 bytes instead of 24",
    ),
    "giant shape": (b"\x81\xa1a" + extension(1, pack(((2**39, 2**39), "float32", b"")))
                    , "has 0 bytes instead of"),
    "negative shape": (b"\x81\xa1a" + extension(1, pack(((-1,), "float32", b""))), "an array has the shape (-1,)"),
    "shape of texts": (
        b"\x81\xa1a" + extension(1, pack((("a",), "float32", b""))),
        "of an array does not begin an integer",
    ),
    "map as shape": (
        b"\x81\xa1a" + extension(1, b"\x93\x91\x81\xa1a\x01\xa7float32\xc4\x00"),
        "does not begin an integer",
    ),
    "too many axes": (b"\x81\xa1a" + extension(1, pack(((1,) * 9, "float32", bytes(4)))), "an array has 9 axes"),
    "four parts": (b"\x81\xa1a" + extension(1, pack(((1,), "float32", bytes(4), 0))), "does not consist of shape"),
    "no bytes": (b"\x81\xa1a" + extension(1, pack(((1,), "float32", "four"))), "an array has no bytes"),
    "pieces without shape": (pack({"__msgpack_chunked_array__": True, "chunks": {"0": ONE["a"]}}), "does not consist"),
    "pieces misnumbered": (
        pack({"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"1": ONE["a"]}}),
        "the entries of a tuple are not numbered from 0 on",
    ),
    "pieces too short": (
        pack({"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": ONE["a"]}}),
        "the pieces of an array [4] have 12 bytes together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files(what, tmp_path):
    data, wrong = DAMAGED[what]
    message = refusal(written(tmp_path, data))
    assert "theta.state is not an intact flax file (" in message
    assert wrong in message
    assert message.endswith("take the folder again from where it came from.")


def edited(path="mlp/~/linear_1", **entries):
    tree = theta()
    layer = tree[path] | entries
    return pack(tree | {path: {name: value for name, value in layer.items() if value is not None}})


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (
            edited(b=None),
            "does not contain the rule mlp or any other rule that can be imported (it lacks 'mlp/~/linear_1/b')",
        ),
        (edited(c=np.zeros(2, "f4")), "(it has 'mlp/~/linear_1/c')"),
        (edited(b=np.zeros(5, "f4")), "('mlp/~/linear_1/b' has the shape [5] instead of [4])"),
        (edited(b=np.zeros((4, 1), "f4")), "('mlp/~/linear_1/b' has the shape [4, 1] instead of [4])"),
        (edited(LAYER.format(0), b=np.zeros(0, "f4")), "('mlp/~/linear_0/b' has the shape [0])"),
        (edited(LAYER.format(0), b=np.float32(1)), "('mlp/~/linear_0/b' has the shape [])"),
        (edited(b=np.full(4, np.nan, "f4")), "that are not finite numbers; take other weights."),
        (edited(b=np.array([0, 1, 2, np.inf], "f4")), "that are not finite numbers; take other weights."),
        (edited(b=np.zeros(4, "i4")), "has an array of int32 at 'mlp/~/linear_1/b' instead of numbers"),
        (edited(b="zero"), "has 'zero' at 'mlp/~/linear_1/b' instead of numbers"),
        (edited(b=np.zeros(4, "f8")), "as torch.float64"),
        (pack({"params": {}, "gen_id": "", "step": 0}), "does not contain the rule"),
        (pack(theta() | {"mlp": {"~/linear_1": {"b": np.zeros(4, "f4")}}}), "two arrays at 'mlp/~/linear_1/b'"),
        (pack(theta() | {"\x1b[31m\n": np.zeros(1, "f4")}), "it has '\\x1b[31m\\n'"),
    ],
)
def test_trees_of_no_rule(data, wrong, tmp_path):
    assert wrong in refusal(written(tmp_path, data))


def test_arguments_and_kinds(tmp_path):
    path = written(tmp_path, pack(theta()))
    assert import_rule(path, arguments={"step_mult": 0.5}).step_mult == 0.5
    assert "the unknown argument 'lr'; it takes hidden, step_mult" in refusal(path, arguments={"lr": 1})
    assert "arguments give hidden=8, but" in refusal(path, arguments={"hidden": 8})
    assert "step_mult must" in refusal(path, arguments={"step_mult": -1.0})
    assert "has tensor 'network.inner_0'" in refusal(path, arguments={"momentum_decays": [0.9]})
    assert "does not contain the rule velo (it lacks" in refusal(path, rule="velo")
    assert "cannot contain the rule 'elo_celo2'; such files contain adafac_mlp," in refusal(path, rule="elo_celo2")
    assert "cannot be joined with" in refusal(path, path)
    assert "there is nothing to import" in refusal()


def test_paths(tmp_path):
    assert "is neither a file nor a folder" in refusal(tmp_path / "none")
    assert "has none of theta.state, params, model.safetensors" in refusal(tmp_path)
    written(tmp_path, pack(theta())).rename(tmp_path / "params")
    assert isinstance(import_rule(tmp_path), MLPRule)
    (tmp_path / "theta.state").symlink_to(tmp_path.parent)
    assert "is a link that leads out of its folder" in refusal(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "lfs.state").write_bytes(pointer)
    assert "is a Git LFS pointer instead of the weights" in refusal(tmp_path / "lfs.state")


def test_too_large_files_are_not_read(tmp_path):
    path = tmp_path / "theta.state"
    with open(path, "wb") as file:
        file.truncate(64 * 2**20 + 1)
    assert "is too large, 67108865 bytes where at most 67108864 are read" in refusal(path)


def test_safetensors_are_checked_as_ours_are(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "is not an intact safetensors file" in refusal(path)
    path.write_bytes(canary_pickle(tmp_path / "touched"))
    assert "is not an intact safetensors file" in refusal(path)
    layers = {"input": (4, 39), "linear_0": (4, 4), "output": (2, 4)}
    tensors = {f"network.{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
    tensors |= {f"network.{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
    save_file(tensors, path)
    assert import_rule(tmp_path, rule="elo").hidden == 4
    save_file(tensors | {"network.input.bias": torch.full((4,), torch.nan)}, path)
    assert "that are not finite numbers" in refusal(path, rule="elo")
    save_file(tensors | {"network.input.bias": torch.zeros(5)}, path)
    assert "instead of" in refusal(path, rule="elo")
    (tmp_path / "config.json").write_text('{"format": "lightning_lopt"}')
    assert "already has the format of lightning_lopt; load the rule with load_rule." in refusal(tmp_path)
    assert not (tmp_path / "touched").exists()
