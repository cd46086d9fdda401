"""The published weights of Celo train: the same losses as an implementation of its own, gradients included."""

import numpy as np
import pytest
import torch
from golden_runs import LEFT_OUT, OUTSIDE, Recording
from plain_celo import PlainCelo
from reference_rules import reference_rule
from torch import nn

from lightning_lopt import LearnedOptimizer

WEIGHTS = OUTSIDE / "celo_pretrained.npz"
IMAGES = OUTSIDE.parent / "data" / "mnist10k.npz"
STEPS, BATCH, HIDDEN = 150, 64, 24

pytestmark = pytest.mark.skipif(not (WEIGHTS.exists() and IMAGES.exists()), reason=LEFT_OUT)


def batches():
    data, draws = np.load(IMAGES), np.random.default_rng(0)
    images = data["images"].reshape(len(data["images"]), -1) / 255.0
    for _ in range(STEPS):
        chosen = draws.integers(len(images), size=BATCH)
        yield images[chosen], data["labels"][chosen].astype(int)


def plain_gradient(params, x, y):
    """Cross-entropy of a perceptron with one hidden layer, and its gradient, written out."""
    hidden = np.maximum(x @ params["w0"] + params["b0"], 0)
    logits = hidden @ params["w1"] + params["b1"]
    logits = logits - logits.max(1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(len(y)), y]).mean()
    error = (shares - np.eye(shares.shape[1])[y]) / len(y)
    back = (error @ params["w1"].T) * (hidden > 0)
    return loss, {"w0": x.T @ back, "b0": back.sum(0), "w1": hidden.T @ error, "b1": error.sum(0)}


def test_published_weights_train_an_image_classifier():
    record = Recording(WEIGHTS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)).double()
    params = {f"{kind}{layer}": getattr(net[2 * layer], name).detach().numpy().T.copy()
              for layer in (0, 1) for kind, name in (("w", "weight"), ("b", "bias"))}  # fmt: skip
    rule = reference_rule(record)
    rule.matrix = "flat"  # as for anybody's model: weights stored (out, in)
    optimizer = LearnedOptimizer(net, rule, total_steps=STEPS)
    plain = PlainCelo(record.theta(), params, STEPS)
    ours, theirs = [], []
    for x, y in batches():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step(loss=loss)
        ours.append(float(loss.detach()))
        loss, grads = plain_gradient(params, x, y)
        theirs.append(loss)
        params = plain.step(params, grads, float(np.float32(loss)))  # the optimizer hands it on in float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert np.mean(theirs[-10:]) < 0.5
