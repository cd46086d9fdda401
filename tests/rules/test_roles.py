"""Roles by module type: what is hidden, what reads tokens, what writes the answer."""

import pytest
import torch
from torch import nn

from lightning_lopt.rules import role_of_shape, role_table, roles_of
from lightning_lopt.rules.contract.roles import check_role


class Language(nn.Module):
    """Token and position tables, attention, normalisation, and an output layer that may be tied to the tokens."""

    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.positions = nn.Parameter(torch.zeros(5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 11, bias=False)
        if tied:
            self.output.weight = self.tokens.weight


def test_language_model():
    roles = roles_of(Language(tied=False))
    assert {name for name, role in roles.items() if role == "embedding"} == {"tokens.weight"}
    assert {name for name, role in roles.items() if role == "head"} == {"output.weight"}
    assert {name for name, role in roles.items() if role == "matrix"} == {
        "positions",
        "block.self_attn.in_proj_weight",
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
    }
    assert all(role == "vector" for name, role in roles.items() if "norm" in name or "bias" in name)


def test_tied_output_layer_is_an_embedding():
    model = Language(tied=True)
    roles = roles_of(model)
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert roles["tokens.weight"] == "embedding"
    assert "head" not in roles.values()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Linear(4, 2)], ["matrix"]),
        ([nn.Linear(4, 3), nn.Linear(3, 2)], ["matrix", "head"]),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 5, 1)], ["matrix", "vector", "head"]),
        ([nn.EmbeddingBag(6, 4), nn.Linear(4, 3), nn.Linear(3, 2)], ["embedding", "matrix", "head"]),
        ([nn.Linear(4, 8), nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 1, 3)], ["matrix", "matrix", "head"]),
        ([nn.Bilinear(2, 2, 3), nn.LayerNorm(3), nn.Linear(3, 2)], ["matrix", "vector", "head"]),
    ],
    ids=lambda part: "-".join(type(layer).__name__ for layer in part) if isinstance(part[0], nn.Module) else "",
)
def test_weights_by_layer(layers, expected):
    roles = roles_of(nn.Sequential(*layers))
    assert [roles[f"{index}.weight"] for index in range(len(layers))] == expected
    assert all(role == "vector" for name, role in roles.items() if name.endswith("bias"))


def test_bare_shapes():
    assert {role_of_shape(shape) for shape in [(), (1,), (3,)]} == {"vector"}
    assert {role_of_shape(shape) for shape in [(1, 3), (3, 1), (2, 3, 3), (2, 3, 3, 3)]} == {"matrix"}
    assert check_role("head", "here") == "head"
    with pytest.raises(ValueError, match="here has role 'tail'; use one of 'matrix', 'vector', 'embedding', 'head'"):
        check_role("tail", "here")


def test_table():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.Linear(3, 2, bias=False))
    params = {**dict(model.named_parameters()), "scale": torch.tensor(1.0)}
    assert [line.split() for line in role_table(params, {**roles_of(model), "scale": "vector"}).splitlines()] == [
        ["parameter", "shape", "role"],
        ["0.weight", "7x4", "embedding"],
        ["1.weight", "3x4", "matrix"],
        ["1.bias", "3", "vector"],
        ["2.weight", "2x3", "head"],
        ["scale", "scalar", "vector"],
    ]
