"""Image tasks: architectures, initialisation, batches, and what variety changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from lightning_lopt.rules import roles_of
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageCNN, ImageCNNTask, ImageMLP, ImageMLPTask, LabelledImages, Variety
from lightning_lopt.tasks.image_cnn import DOWNSAMPLINGS


@pytest.fixture(scope="module")
def split(blobs):
    return blobs.split(0.25, generator(0))


def test_mlp_is_the_module_it_looks_like(split):
    task = ImageMLPTask(*split, widths=(8, 5), activation="tanh")
    params = task.init(generator(0))
    assert {name: tuple(param.shape) for name, param in params.items()} == {
        "layers.0.weight": (8, 36),
        "layers.0.bias": (8,),
        "layers.1.weight": (5, 8),
        "layers.1.bias": (5,),
        "layers.2.weight": (4, 5),
        "layers.2.bias": (4,),
    }
    linears = [nn.utils.skip_init(nn.Linear, *shape) for shape in ((36, 8), (8, 5), (5, 4))]
    module = nn.Sequential(nn.Flatten(), linears[0], nn.Tanh(), linears[1], nn.Tanh(), linears[2])
    for linear, layer in zip(linears, range(3), strict=True):
        linear.load_state_dict({key: params[f"layers.{layer}.{key}"] for key in ("weight", "bias")})
    batch = task.full_batch("valid")
    torch.testing.assert_close(task.logits(params, batch["inputs"]), module(batch["inputs"]))
    assert list(task.roles.values()) == list(roles_of(module).values())


@pytest.mark.parametrize("readout", ["mean", "flatten"])
@pytest.mark.parametrize("downsampling", DOWNSAMPLINGS)
def test_cnn_is_the_module_it_looks_like(split, downsampling, readout):
    task = ImageCNNTask(*split, channels=(3, 5, 2), activation="silu", downsampling=downsampling, readout=readout)
    params = task.init(generator(0))
    stride = 2 if downsampling == "stride" else 1
    pools = {"stride": nn.Identity(), "max": nn.MaxPool2d(2, ceil_mode=True), "mean": nn.AvgPool2d(2, ceil_mode=True)}
    # 6x6 is halved to 3x3, which is too small to be halved again
    convs = [nn.utils.skip_init(nn.Conv2d, *io, 3, padding=1) for io in ((1, 3), (3, 5), (5, 2))]
    convs[0].stride = (stride, stride)
    head = nn.utils.skip_init(nn.Linear, 2 if readout == "mean" else 18, 4)
    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if readout == "mean" else [nn.Flatten()]
    body = [convs[0], nn.SiLU(), pools[downsampling], convs[1], nn.SiLU(), convs[2], nn.SiLU()]
    module = nn.Sequential(*body, *last, head)
    for layer, conv in enumerate(convs):
        conv.load_state_dict({key: params[f"convs.{layer}.{key}"] for key in ("weight", "bias")})
    head.load_state_dict({key: params[f"head.{key}"] for key in ("weight", "bias")})
    batch = task.full_batch("valid")
    torch.testing.assert_close(task.logits(params, batch["inputs"]), module(batch["inputs"]))
    assert list(task.roles.values()) == list(roles_of(module).values())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_init_is_uniform_as_in_pytorch(split, scale):
    params = ImageMLPTask(*split, widths=(200,), init_scale=scale).init(generator(0))
    weight, bias = params["layers.0.weight"], params["layers.0.bias"]
    assert weight.abs().max() <= scale / 6  # 36 inputs
    assert weight.mean().abs() < 0.005
    assert weight.std().item() == pytest.approx(scale / 6 / 3**0.5, rel=0.03)
    assert bias.abs().max().item() == pytest.approx(1 / 6, rel=0.05)
    conv = ImageCNNTask(*split, channels=(8, 64), init_scale=scale).init(generator(0))["convs.1.weight"]
    assert conv.std().item() == pytest.approx(scale / 72**0.5 / 3**0.5, rel=0.03)


def test_batches_come_from_their_split(split):
    task = ImageMLPTask(*split, widths=(), batch_size=64)
    for part, data in zip(("train", "valid"), split, strict=True):
        rows = {row.numpy().tobytes(): int(label) for row, label in zip(data.inputs, data.targets, strict=True)}
        batch = task.batch(generator(0), 3, split=part)
        pairs = zip(batch["inputs"].flatten(0, 1), batch["targets"].flatten(), strict=True)
        assert all(rows[image.numpy().tobytes()] == label for image, label in pairs)


def test_accuracy(split):
    task = ImageMLPTask(*split, widths=())
    params = {name: torch.zeros_like(param) for name, param in task.init(generator(0)).items()}
    params["layers.0.bias"][2] = 1.0
    batch = task.full_batch("train")
    expected = (batch["targets"] == 2).float().mean()
    assert task.metrics(params, batch)["accuracy"] == expected
    params = task.init(generator(1))
    best = [row.argmax() for row in task.logits(params, batch["inputs"])]
    hits = sum(int(one == label) for one, label in zip(best, batch["targets"], strict=True))
    assert task.metrics(params, batch)["accuracy"].item() == pytest.approx(hits / len(best))


def test_without_variety_the_data_is_the_plain_data(blobs):
    for task in map(ImageMLP(blobs, variety=False).sample, [generator(0), generator(1)]):
        inputs = torch.cat([task.full_batch(part)["inputs"] for part in ("train", "valid")])
        torch.testing.assert_close(inputs.sum((1, 2, 3)).sort()[0], blobs.standardised().flat.sum(1).sort()[0])
        assert "/blobs/36-" in task.name


def test_options_reach_the_tasks(blobs):
    other = replace(blobs, name="other")
    family = ImageMLP(
        [blobs, other], (2,), (7,), activations=("gelu",), batch_sizes=(5,), size=3, variety=False, max_valid=6
    )
    tasks = [family.sample(generator(seed)) for seed in range(8)]
    assert {task.name for task in tasks} == {f"image_mlp/{name}/9-7-7-4/gelu/b5" for name in ("blobs", "other")}
    assert len(tasks[0].full_batch("valid")["targets"]) == 6
    cnn = ImageCNN(blobs, (1,), (7,), ("max",), ("flatten",), activations=("relu",), batch_sizes=(5,), variety=False)
    assert cnn.sample(generator(0)).name == "image_cnn/blobs/c7-max-flatten-4/relu/b5"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"activations": ("swish",)}, "activations must be a sequence of some of 'relu', .* got"),
        ({"activations": "relu"}, "activations must be a sequence"),
        ({"batch_sizes": (0,)}, r"batch_sizes must be a sequence of positive integers, .* got \(0,\)"),
        ({"widths": ()}, "widths must be a sequence"),
        ({"depths": (1.5,)}, "depths must be a sequence"),
        ({"data": []}, "data is an empty list"),
        ({"size": 0}, "cannot resize to 0 pixels"),
    ],
)
def test_wrong_options(blobs, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        ImageMLP(**{"data": blobs} | arguments)


def test_variety_needs_two_images_of_each_class(blobs):
    with pytest.raises(ValueError, match=r"class 3 has 1 images; .* pass variety=False"):
        ImageMLP(blobs.take(torch.arange(7)))


NEUTRAL = Variety(seed=5, classes=4)


def parts(data, **changes):
    return replace(NEUTRAL, **changes).apply(data, 0.25, None)


def test_neutral_variety_only_shuffles_and_renumbers(blobs):
    train, valid = parts(blobs)
    assert (len(train), len(valid), train.classes) == (90, 30, 4)
    torch.testing.assert_close(
        torch.cat([train.flat, valid.flat]).sum(1).sort()[0], blobs.flat.sum(1).sort()[0], rtol=0, atol=0
    )


def test_classes_and_examples_are_subsets(blobs):
    train, valid = parts(blobs, classes=3, examples=40)
    assert len(train) + len(valid) == 40
    labels = torch.cat([train.targets, valid.targets])
    assert labels.unique().tolist() == [0, 1, 2]
    images = {image.numpy().tobytes(): int(label) for image, label in zip(blobs.inputs, blobs.targets, strict=True)}
    old = [images[image.numpy().tobytes()] for image in torch.cat([train.inputs, valid.inputs])]
    assert len(set(zip(old, labels.tolist(), strict=True))) == 3  # one new number for each old one


def test_merged_classes(blobs):
    plain, merged = parts(blobs)[0], parts(blobs, merged=True)[0]
    assert merged.classes == 2
    assert torch.equal(merged.targets, plain.targets // 2)


def test_label_noise_hits_its_share_of_training_labels_only():
    data = LabelledImages(torch.ones(8000, 1, 1, 1), torch.arange(8000) % 4, 4, "many")
    clean, noisy = parts(data, examples=8000), parts(data, examples=8000, label_noise=0.4)
    changed = (clean[0].targets != noisy[0].targets).float().mean().item()
    assert changed == pytest.approx(0.4 * 3 / 4, abs=0.02)  # a quarter of the draws hits the right class
    assert torch.equal(clean[1].targets, noisy[1].targets)


def test_pixels_change_place_in_all_images_alike(blobs):
    plain, permuted = parts(blobs)[0].flat, parts(blobs, permuted=True)[0].flat
    order = [int((plain == permuted[:, [pixel]]).all(0).nonzero()) for pixel in range(36)]
    assert sorted(order) == list(range(36)) != order


def test_contrast_inversion_and_shift(blobs):
    plain, changed = parts(blobs)[0].inputs, parts(blobs, contrast=2.0, inverted=True, shift=0.5)[0].inputs
    torch.testing.assert_close(changed, -2 * plain + 0.5)


def test_spread_is_a_factor_for_each_pixel(blobs):
    ratio = parts(blobs, spread=0.5)[0].flat / parts(blobs)[0].flat
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert ratio[0].log().std().item() == pytest.approx(0.5, rel=0.3)


def test_pixel_noise_has_its_size(blobs):
    noise = parts(blobs, pixel_noise=0.3)[0].inputs - parts(blobs)[0].inputs
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)


def test_drawn_variety_varies_and_can_be_applied_again(blobs):
    drawn = [Variety.draw(blobs, generator(seed)) for seed in range(40)]
    for key in NEUTRAL.config:
        assert len({variety.config[key] for variety in drawn}) > 1, key
    for variety in drawn:
        once, twice = variety.apply(blobs, 0.2, 10), Variety(**variety.config).apply(blobs, 0.2, 10)
        assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(once, twice, strict=True))
        assert once[0].inputs.isfinite().all()


def test_initial_weights_are_scaled_in_some_tasks(blobs):
    family = ImageMLP(blobs, depths=(1,), widths=(64,))
    scales = []
    for seed in range(10):
        task = family.sample(generator(seed))
        scales.append(task.config["init_scale"])
        weight = task.init(generator(seed))["layers.0.weight"]
        assert weight.abs().max().item() == pytest.approx(scales[-1] / 6, rel=0.02)
    assert 1.0 in scales
    assert len(set(scales)) > 2


def test_init_is_a_leaf_that_can_be_trained(split):
    params = ImageMLPTask(*split, widths=(3,)).init(generator(0))
    assert not parameters_to_vector(params.values()).requires_grad
