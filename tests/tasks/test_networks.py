"""Networks of the image families against PyTorch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from task_helpers import built, normal
from torch import nn

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMixerTask, ImageResNetTask, ImageViT, ImageViTTask
from lightning_lopt.tasks.attention import Transformer, attention
from lightning_lopt.tasks.layers import ACTIVATIONS, batch_norm, group_norm, layer_norm, mlp
from lightning_lopt.tasks.layout import SCHEMES, Layout
from lightning_lopt.tasks.patches import Patches


@pytest.fixture(scope="module")
def split(blobs):
    return blobs.split(0.25, generator(0))


def shaken(layout, seed=0):
    """Parameters no entry of which is a one or a zero, so that none can be forgotten unseen."""
    params = layout.draw(generator(seed))
    return {name: value + 0.1 * normal(*value.shape, seed=index) for index, (name, value) in enumerate(params.items())}


GAIN = {"n.weight": normal(8, seed=1), "n.bias": normal(8, seed=2)}


def test_batch_norm():
    x = 3 * normal(5, 8, 4, 3) + 2
    expected = F.batch_norm(x, None, None, GAIN["n.weight"], GAIN["n.bias"], training=True)
    torch.testing.assert_close(batch_norm(GAIN, "n", x), expected)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm(groups):
    x = 3 * normal(5, 8, 4, 3) + 2
    expected = F.group_norm(x, groups, GAIN["n.weight"], GAIN["n.bias"])
    torch.testing.assert_close(group_norm(GAIN, "n", x, groups), expected)


def test_layer_norm():
    x = 3 * normal(5, 4, 8) + 2
    expected = F.layer_norm(x, (8,), GAIN["n.weight"], GAIN["n.bias"])
    torch.testing.assert_close(layer_norm(GAIN, "n", x), expected)


def test_mlp_with_norm():
    layout = Layout()
    layout.mlp((4, 8, 3), "f", norm=True)
    params = shaken(layout)
    module = built(lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 3)))
    names = ("f.0.weight", "f.0.bias", "f.0.norm.weight", "f.0.norm.bias", "f.1.weight", "f.1.bias")
    module.load_state_dict(dict(zip(module.state_dict(), [params[name] for name in names], strict=True)))
    torch.testing.assert_close(mlp(params, "f", normal(5, 4), 2, F.silu), module(normal(5, 4)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    layout = Layout()
    layout.linear("a.qkv", 8, 24)
    layout.linear("a.out", 8, 8)
    params = shaken(layout)
    module = built(lambda: nn.MultiheadAttention(8, 2, batch_first=True))
    module.in_proj_weight.data, module.in_proj_bias.data = params["a.qkv.weight"], params["a.qkv.bias"]
    module.out_proj.weight.data, module.out_proj.bias.data = params["a.out.weight"], params["a.out.bias"]
    x = normal(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    expected, _ = module(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(attention(params, "a", x, 2, causal), expected)


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_transformer(prenorm, causal):
    transformer, layout = Transformer(8, 2, 4, "relu", prenorm, causal), Layout()
    transformer.add_to(layout)
    params = shaken(layout)
    layer = built(lambda: nn.TransformerEncoderLayer(8, 4, 16, 0.0, "relu", batch_first=True, norm_first=prenorm))
    module = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    ours = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.out.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.1.",
    }
    state = {}
    for name in module.state_dict():
        key = name.replace("layers.", "blocks.")
        for theirs, mine in ours.items():
            key = key.replace(theirs, mine)
        state[name] = params[key]
    assert len(state) == len(params)
    module.load_state_dict(state)
    x = normal(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5) if causal else None
    torch.testing.assert_close(transformer(params, x), module(x, mask=mask, is_causal=causal), rtol=1e-5, atol=1e-5)


def test_heads_must_divide_the_width(blobs):
    with pytest.raises(ValueError, match="heads must divide the width, got 3 heads for a width of 8"):
        Transformer(8, 1, 3)
    with pytest.raises(ValueError, match="heads must divide the width"):
        ImageViT(blobs, widths=(9,), heads=(2,)).sample(generator(0))


def test_patches_are_cut_row_by_row_and_padded():
    images = torch.arange(2 * 2 * 6 * 6.0).reshape(2, 2, 6, 6)
    patches = Patches((2, 6, 6), 3)
    assert (patches.size, patches.tokens, patches.features) == (2, 9, 8)
    torch.testing.assert_close(patches(images)[1, 5], images[1, :, 2:4, 4:6].flatten())
    unfolded = F.unfold(images, 2, stride=2).mT
    torch.testing.assert_close(patches(images), unfolded)
    padded = Patches((2, 6, 6), 4)  # patches of 2 pixels need no more than 3 a side
    assert (padded.size, padded.tokens) == (2, 9)
    wide = Patches((2, 6, 5), 2)
    assert (wide.size, wide.rows, wide.columns) == (3, 2, 2)
    assert not wide(images[..., :5])[:, 1].reshape(2, 2, 3, 3)[..., 2].any()
    torch.testing.assert_close(wide(images[..., :5])[0, 2].reshape(2, 3, 3), images[0, :, 3:, :3])


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_vit(split, pooling):
    task = ImageViTTask(*split, grid=3, width=8, depth=1, heads=2, pooling=pooling)
    params = shaken(task.layout)
    assert task.roles["position.weight"] == "embedding"
    assert (task.roles["head.weight"], task.roles["patch.weight"]) == ("head", "matrix")
    x = F.linear(F.unfold(split[1].inputs, 2, stride=2).mT, params["patch.weight"], params["patch.bias"])
    x = x + params["position.weight"]
    if pooling == "token":
        x = torch.cat([params["class.token"].expand(len(x), 1, 8), x], 1)
    x = task.transformer(params, x)
    x = x[:, 0] if pooling == "token" else x.mean(1)
    expected = F.linear(x, params["head.weight"], params["head.bias"])
    torch.testing.assert_close(task.logits(params, split[1].inputs), expected)


def test_mixer(split):
    task = ImageMixerTask(*split, grid=3, width=8, depth=2, activation="relu")
    params = shaken(task.layout)
    x = F.linear(F.unfold(split[1].inputs, 2, stride=2).mT, params["patch.weight"], params["patch.bias"])
    for name in ("blocks.0", "blocks.1"):
        p = {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(name)}
        normed = F.layer_norm(x, (8,), p["norm1.weight"], p["norm1.bias"])
        hidden = torch.einsum("btw,ut->buw", normed, p["tokens.0.weight"]) + p["tokens.0.bias"][:, None]
        x = x + torch.einsum("buw,tu->btw", hidden.relu(), p["tokens.1.weight"]) + p["tokens.1.bias"][:, None]
        normed = F.layer_norm(x, (8,), p["norm2.weight"], p["norm2.bias"])
        hidden = torch.einsum("btw,vw->btv", normed, p["features.0.weight"]) + p["features.0.bias"]
        x = x + torch.einsum("btv,wv->btw", hidden.relu(), p["features.1.weight"]) + p["features.1.bias"]
    x = F.layer_norm(x, (8,), params["norm.weight"], params["norm.bias"]).mean(1)
    expected = F.linear(x, params["head.weight"], params["head.bias"])
    torch.testing.assert_close(task.logits(params, split[1].inputs), expected, rtol=1e-5, atol=1e-5)


class Block(nn.Module):
    """A residual block, written anew."""

    def __init__(self, before, out, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(before, out, 3, stride, 1, bias=False)
        self.norm1 = norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = norm(out)
        self.shortcut = nn.Conv2d(before, out, 1, stride, bias=False) if stride > 1 or before != out else None

    def forward(self, x):
        branch = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (branch + (x if self.shortcut is None else self.shortcut(x))).relu()


class ResNet(nn.Module):
    """A residual network of two blocks a stage, written anew, with names as the task has them."""

    def __init__(self, channels, stride, norm):
        super().__init__()
        self.stem = nn.Conv2d(1, channels[0], 3, stride, 1, bias=False)
        self.stem.norm = norm(channels[0])
        widths = [channels[0], *(width for width in channels for _ in range(2))]
        strides = [2 if index > 0 and index % 2 == 0 else 1 for index in range(2 * len(channels))]
        self.blocks = nn.Sequential(*(Block(*one, norm) for one in zip(widths[:-1], widths[1:], strides, strict=True)))
        self.head = nn.Linear(channels[-1], 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem.norm(self.stem(x)).relu()).mean((2, 3)))


@pytest.mark.parametrize(("size", "channels"), [(6, (6, 8)), (12, (4,))])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet(split, size, channels, norm):
    train, valid = (part.resized(size) for part in split)
    task = ImageResNetTask(train, valid, channels, blocks=2, norm=norm)
    params = shaken(task.layout)
    groups = {4: 4, 6: 2, 8: 4}
    make = nn.BatchNorm2d if norm == "batch" else lambda width: nn.GroupNorm(groups[width], width)
    module = built(lambda: ResNet(channels, 2 if size == 12 else 1, make))
    missing = module.load_state_dict(params, strict=False)
    assert not missing.unexpected_keys
    assert all("running" in key or "batches" in key for key in missing.missing_keys)
    torch.testing.assert_close(task.logits(params, valid.inputs), module(valid.inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(scheme):
    layout = Layout(scheme, 0.5)
    layout.mlp((400, 300, 200))
    layout.table("t", 500, 100)
    params = layout.draw(generator(0))
    inside = 0.8796  # deviation of a standard normal that is cut at two deviations
    deviation = {"uniform": 3**-0.5, "lecun": inside, "he": inside * 2**0.5}[scheme]
    assert params["layers.0.weight"].std().item() == pytest.approx(0.5 * deviation / 20, rel=0.02)
    last = deviation if scheme == "uniform" else inside  # no activation follows
    assert params["layers.1.weight"].std().item() == pytest.approx(0.5 * last / 300**0.5, rel=0.02)
    assert params["layers.0.weight"].mean().abs() < 5e-4
    if scheme == "uniform":
        assert params["layers.0.bias"].abs().max().item() == pytest.approx(1 / 20, rel=0.02)
    else:
        assert not params["layers.0.bias"].any()
        assert params["layers.1.weight"].abs().max().item() == pytest.approx(2 * 0.5 / 300**0.5, rel=0.02)
    assert params["t.weight"].std().item() == pytest.approx(0.5 * inside / 10, rel=0.02)
    assert list(layout.roles.values()) == ["matrix", "vector", "head", "vector", "embedding"]


def test_unknown_scheme():
    with pytest.raises(ValueError, match="scheme must be one of 'uniform', 'lecun', 'he', got 'xavier'"):
        Layout("xavier")


def test_activations_are_pytorchs():
    x = normal(20)
    modules = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU(), "silu": nn.SiLU()}
    assert ACTIVATIONS.keys() == modules.keys()
    for name, module in modules.items():
        assert torch.equal(ACTIVATIONS[name](x), module(x))
