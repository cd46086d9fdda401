"""Variational autoencoders of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_number_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.reconstruction import ReconstructionFamily, ReconstructionTask


class ImageVAETask(ReconstructionTask):
    r"""Negative evidence lower bound in nats per pixel, without its constant, for pixels of known deviation s.

    .. math:: L = \frac1D \Big(\frac{\lVert x - d(z) \rVert^2}{2 s^2} +
        \text{KL}\big(\mathcal N(\mu, \sigma^2) \,\Vert\, \mathcal N(0, 1)\big)\Big), \qquad
        z = \mu + \sigma\varepsilon, \quad [\mu, \log\sigma^2] = e(x)

    The noise ε is an entry of the batch, shape ``(B, code)``.

    Args:
        train: images to train on; labels are not used.
        valid: held-out images.
        widths: widths of the encoder's hidden layers; the decoder has them in reverse order.
        code: dimensions of z.
        deviation: standard deviation s of a pixel, > 0.
        options: see :class:`~lightning_lopt.tasks.reconstruction.ReconstructionTask`.

    References: Kingma and Welling 2013, https://arxiv.org/abs/1312.6114

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> task = ImageVAETask(images, images, widths=(16,), code=2, batch_size=8)
        >>> {name: tuple(value.shape) for name, value in task.batch(torch.Generator()).items()}
        {'inputs': (8, 64), 'noise': (8, 2)}
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int] = (32,),
        code: int = 4,
        deviation: float = 0.5,
        **options: Any,
    ) -> None:
        weight = 0.5 / deviation**2
        super().__init__(train, valid, widths, code=code, encoded=2 * code, noise=code, error_weight=weight, **options)
        self.error_weight = weight

    def loss(self, params: Params, batch: Batch) -> Tensor:
        images = batch["inputs"]
        mean, log_variance = self.encode(params, images).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * batch["noise"]
        error = (self.decode(params, z) - images).square().sum(-1)
        divergence = kl_to_standard_normal(mean, log_variance)
        return (self.error_weight * error + divergence).mean() / images.shape[-1]


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL divergence from N(0, 1) in nats, summed over the last axis: :math:`\frac12\sum(\mu^2 + \sigma^2 - 1 -
    \log\sigma^2)`."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class ImageVAE(ReconstructionFamily):
    """Variational autoencoders of different depth, width and code of (varied) images.

    Args:
        data: see :class:`~lightning_lopt.tasks.reconstruction.ReconstructionFamily`, also for ``depths``, ``widths``
            and ``codes`` in ``options``.
        deviations: deviations of a pixel to draw from, > 0; the code matters more if the deviation is small.

    Raises:
        ValueError: if a list is empty, an entry is unknown or out of range, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageVAE(images, depths=(1,), widths=(16,), codes=(2,), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_vae/mine/64-16-2-s0.5/silu/b64'
    """

    name = "image_vae"
    task_class = ImageVAETask

    def __init__(
        self, data: DataLike | None = None, deviations: Sequence[float] = (0.3, 0.5, 1.0), **options: Any
    ) -> None:
        # log σ² is exponentiated: with larger initial weights, a single image can make the loss a thousand times larger
        super().__init__(data, **{"schemes": ("uniform", "lecun"), "init_scales": (0.5, 1.0), **options})
        self.ranges["deviations"] = check_number_options(deviations, "deviations", 0.01)

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings, shape = super()._draw(train, generator)
        deviation = self.pick("deviations", generator)
        return settings | {"deviation": deviation}, f"{shape}-s{deviation:g}"
