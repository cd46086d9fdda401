"""Autoencoders of images, plain and denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.seeding import generator as derived_generator
from lightning_lopt.tasks._draw import check_numbers, check_sizes
from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.examples import ExamplesTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout


class ReconstructionTask(ExamplesTask):
    """Images that are to be given back, with numbers drawn anew for each batch.

    A batch is ``{"inputs": (*lead, B, D), "noise": (*lead, B, K)}``, images as rows, standard normal noise. In
    :meth:`full_batch` the noise is the same at every call.

    Args:
        train: images to train on; labels are left aside.
        valid: held-out images.
        layout: the parameters.
        noise: K, random numbers for each image; 0 leaves ``"noise"`` out.
        error_weight: the loss of a model that knows nothing is this times the variance of all training pixels.
        options: ``batch_size``, ``name``, ``config``.
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        layout: Layout,
        noise: int,
        error_weight: float = 1.0,
        **options: Any,
    ) -> None:
        variance = float(train.inputs.var(correction=0))
        loss_scale = error_weight * variance if variance > 0 else 1.0
        super().__init__(
            {"train": {"inputs": train.flat}, "valid": {"inputs": valid.flat}}, layout, loss_scale, **options
        )
        self.noise = noise

    def batch(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        return self._with_noise(super().batch(generator, *lead, split=split), generator)

    def full_batch(self, split: Split) -> Batch:
        return self._with_noise(super().full_batch(split), derived_generator(0, "full batch", split))

    def _with_noise(self, batch: Batch, generator: torch.Generator) -> Batch:
        if self.noise:
            batch["noise"] = torch.randn(*batch["inputs"].shape[:-1], self.noise, generator=generator)
        return batch


class ImageAutoencoderTask(ReconstructionTask):
    r"""Mean squared error of a perceptron with a narrow middle, on images whose pixels may have noise added.

    .. math:: L = \frac1D \lVert x - d(e(x + s\,\varepsilon)) \rVert^2, \qquad \varepsilon \sim \mathcal N(0, 1)

    Args:
        train: images to train on; labels are left aside.
        valid: held-out images.
        widths: hidden layers of the ``encoder``; the ``decoder`` has them in reverse.
        code: width of the middle, which has no activation.
        corruption: s >= 0.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights (biases excepted).
        options: ``batch_size``, ``name``, ``config``.

    References: Vincent et al. 2008 (denoising)
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int] = (32,),
        code: int = 8,
        corruption: float = 0.0,
        activation: str = "tanh",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.features, *widths, code), "encoder", last="matrix")
        layout.mlp((code, *widths[::-1], train.features), "decoder")
        super().__init__(train, valid, layout, train.features if corruption else 0, **options)
        self.layers = len(widths) + 1
        self.corruption = corruption
        self.activation = ACTIVATIONS[activation]

    def loss(self, params: Params, batch: Batch) -> Tensor:
        seen = batch["inputs"] + self.corruption * batch["noise"] if self.corruption else batch["inputs"]
        code = mlp(params, "encoder", seen, self.layers, self.activation)
        return F.mse_loss(mlp(params, "decoder", code, self.layers, self.activation), batch["inputs"])


class ImageAutoencoder(ImageFamily):
    """Autoencoders of different depth, width and corruption of (varied) images.

    Args:
        data: where images come from; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of hidden layers of the encoder to draw from.
        widths: widths to draw from, for each hidden layer anew.
        codes: widths of the middle to draw from.
        corruptions: deviations of the noise on pixels to draw from; 0 twice makes half of the tasks plain.

    Raises:
        ValueError: if a list is empty, an entry is unknown or out of range, or data cannot be loaded.
    """

    name = "image_autoencoder"
    task_class = ImageAutoencoderTask

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2, 3),
        widths: Sequence[int] = (16, 32, 64),
        codes: Sequence[int] = (4, 8, 16),
        corruptions: Sequence[float] = (0.0, 0.0, 0.3, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(data, **{"max_size": 16, "init_scales": (0.5, 1.25), **options})
        self.ranges |= {
            "depths": check_sizes(depths, "depths"),
            "widths": check_sizes(widths, "widths"),
            "codes": check_sizes(codes, "codes"),
            "corruptions": check_numbers(corruptions, "corruptions"),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        widths = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        code, corruption = self.pick("codes", generator), self.pick("corruptions", generator)
        shape = "-".join(map(str, (train.features, *widths, code))) + f"-n{corruption:g}"
        return {"widths": widths, "code": code, "corruption": corruption}, shape
