"""Variational autoencoders of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import check_numbers, check_sizes
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.image_autoencoder import ReconstructionTask
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout


class ImageVAETask(ReconstructionTask):
    r"""Negative evidence lower bound in nats per pixel, without its constant, for pixels of known deviation s.

    .. math:: L = \frac1D \Big(\frac{\lVert x - d(z) \rVert^2}{2 s^2} +
        \text{KL}\big(\mathcal N(\mu, \sigma^2) \,\Vert\, \mathcal N(0, 1)\big)\Big), \qquad
        z = \mu + \sigma\varepsilon, \quad [\mu, \log\sigma^2] = e(x)

    The noise ε comes in the batch, shape ``(B, code)``.

    Args:
        train: images to train on; labels are left aside.
        valid: held-out images.
        widths: hidden layers of the ``encoder``; the ``decoder`` has them in reverse.
        code: dimensions of z.
        deviation: s > 0.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights (biases excepted).
        options: ``batch_size``, ``name``, ``config``.

    References: Kingma and Welling 2013, https://arxiv.org/abs/1312.6114
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int] = (32,),
        code: int = 4,
        deviation: float = 0.5,
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.features, *widths, 2 * code), "encoder", last="matrix")
        layout.mlp((code, *widths[::-1], train.features), "decoder")
        self.precision = 1 / deviation**2
        super().__init__(train, valid, layout, code, 0.5 * self.precision, **options)
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def loss(self, params: Params, batch: Batch) -> Tensor:
        x = batch["inputs"]
        mean, log_variance = mlp(params, "encoder", x, self.layers, self.activation).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * batch["noise"]
        error = (mlp(params, "decoder", z, self.layers, self.activation) - x).square().sum(-1)
        divergence = kl_to_standard_normal(mean, log_variance)
        return (0.5 * self.precision * error + divergence).mean() / x.shape[-1]


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL divergence from N(0, 1) in nats, summed over the last axis: :math:`\frac12\sum(\mu^2 + \sigma^2 - 1 -
    \log\sigma^2)`."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class ImageVAE(ImageFamily):
    """Variational autoencoders of different depth, width and code of (varied) images.

    Args:
        data: where images come from; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of hidden layers of the encoder to draw from.
        widths: widths to draw from, for each hidden layer anew.
        codes: dimensions of the code to draw from.
        deviations: deviations of a pixel to draw from, > 0; small ones make the code matter.

    Raises:
        ValueError: if a list is empty, an entry is unknown or out of range, or data cannot be loaded.
    """

    name = "image_vae"
    task_class = ImageVAETask

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2),
        widths: Sequence[int] = (16, 32, 64),
        codes: Sequence[int] = (2, 4, 8),
        deviations: Sequence[float] = (0.3, 0.5, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(data, **{"max_size": 16, "init_scales": (0.5, 1.25), **options})
        self.ranges |= {
            "depths": check_sizes(depths, "depths"),
            "widths": check_sizes(widths, "widths"),
            "codes": check_sizes(codes, "codes"),
            "deviations": check_numbers(deviations, "deviations", 0.01),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        widths = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        code, deviation = self.pick("codes", generator), self.pick("deviations", generator)
        shape = "-".join(map(str, (train.features, *widths, code))) + f"-s{deviation:g}"
        return {"widths": widths, "code": code, "deviation": deviation}, shape
