"""Autoencoders: losses against PyTorch's distributions, the noise of a batch, what an ignorant model loses."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageAutoencoder, ImageAutoencoderTask, ImageVAE, ImageVAETask


@pytest.fixture(scope="module")
def split(blobs):
    return blobs.split(0.25, generator(0))


def sequential(params, prefix, activation):
    """The perceptron ``prefix`` as a module."""
    layers = []
    for index in range(len([name for name in params if name.startswith(prefix) and name.endswith("weight")])):
        weight = params[f"{prefix}.{index}.weight"]
        linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": params[f"{prefix}.{index}.bias"]})
        layers += [activation, linear]
    return nn.Sequential(*layers[1:])


def test_vae_loss_is_the_negative_bound(split):
    task = ImageVAETask(*split, widths=(8, 6), code=3, deviation=0.7, activation="tanh")
    params, batch = task.init(generator(1)), task.batch(generator(2))
    images = batch["inputs"]
    mean, log_variance = sequential(params, "encoder", nn.Tanh())(images).chunk(2, -1)
    posterior = Normal(mean, log_variance.exp().sqrt())
    z = posterior.loc + posterior.scale * batch["noise"]
    likelihood = Normal(sequential(params, "decoder", nn.Tanh())(z), 0.7)
    constant = Normal(0.0, 0.7).log_prob(torch.tensor(0.0)) * 36
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1)
    bound = likelihood.log_prob(images).sum(-1) - constant - divergence
    torch.testing.assert_close(task.loss(params, batch), -bound.mean() / 36)


@pytest.mark.parametrize("corruption", [0.0, 0.5])
def test_autoencoder_loss(split, corruption):
    task = ImageAutoencoderTask(*split, widths=(8,), code=3, corruption=corruption, activation="silu")
    params, batch = task.init(generator(1)), task.batch(generator(2))
    assert ("noise" in batch) == (corruption > 0)
    seen = batch["inputs"] + corruption * batch.get("noise", torch.zeros(()))
    answer = sequential(params, "decoder", nn.SiLU())(sequential(params, "encoder", nn.SiLU())(seen))
    torch.testing.assert_close(task.loss(params, batch), (answer - batch["inputs"]).square().mean())


@pytest.mark.parametrize("make", [ImageAutoencoderTask, ImageVAETask])
def test_a_constant_image_has_the_loss_scale(split, make):
    task = make(*split, widths=(8,))
    params = {name: torch.zeros_like(value) for name, value in task.init(generator(0)).items()}
    params["decoder.1.bias"] += split[0].inputs.mean()
    assert task.loss(params, task.full_batch("train")).item() == pytest.approx(task.loss_scale, rel=1e-5)
    assert [role for role in task.roles.values() if role != "vector"] == ["matrix"] * 3 + ["head"]


def test_noise_is_new_in_each_batch_and_fixed_in_the_full_one(split):
    task = ImageVAETask(*split, code=5)
    gen = generator(3)
    first, second = task.batch(gen, 4)["noise"], task.batch(gen, 4)["noise"]
    assert first.shape == (4, 32, 5)
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(1.0, abs=0.1)
    full = task.full_batch("valid")
    assert torch.equal(full["noise"], task.full_batch("valid")["noise"])
    assert "noise" not in task.splits["valid"]


def test_settings_reach_the_task(blobs):
    family = ImageAutoencoder(blobs, (0.3,), depths=(2,), widths=(7,), codes=(3,), activations=("relu",))
    assert "/36-7-7-3-n0.3/relu/" in family.sample(generator(0)).name
    assert "/36-7-5-s0.5/" in ImageVAE(blobs, (0.5,), depths=(1,), widths=(7,), codes=(5,)).sample(generator(0)).name
    with pytest.raises(ValueError, match=r"deviations must be numbers >= 0.01, .* got \(0.0,\)"):
        ImageVAE(blobs, (0.0,))
    with pytest.raises(ValueError, match="corruptions must be numbers >= 0"):
        ImageAutoencoder(blobs, (-1.0,))
