"""Autoencoders of images, plain and denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_number_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.reconstruction import ReconstructionFamily, ReconstructionTask


class ImageAutoencoderTask(ReconstructionTask):
    r"""Mean squared error of an autoencoder with a narrow middle layer; noise may be added to its inputs.

    .. math:: L = \frac1D \lVert x - d(e(x + s\,\varepsilon)) \rVert^2, \qquad \varepsilon \sim \mathcal N(0, 1)

    Args:
        train: images to train on; labels are not used.
        valid: held-out images.
        widths: widths of the encoder's hidden layers; the decoder has them in reverse order.
        code: width of the middle layer, which has no activation.
        corruption: standard deviation s of the noise on pixels, >= 0.
        options: see :class:`~lightning_lopt.tasks.reconstruction.ReconstructionTask`.

    References: Hinton and Salakhutdinov 2006; Vincent et al. 2008 (denoising)

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10)
        >>> task = ImageAutoencoderTask(images, images, widths=(16,), code=4, corruption=0.3, batch_size=8)
        >>> params = task.init(torch.Generator().manual_seed(0))
        >>> [tuple(params[f"{part}.0.weight"].shape) for part in ("encoder", "decoder")]
        [(16, 64), (16, 4)]
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int] = (32,),
        code: int = 8,
        corruption: float = 0.0,
        **options: Any,
    ) -> None:
        noise = train.features if corruption else 0
        super().__init__(train, valid, widths, code=code, encoded=code, noise=noise, **options)
        self.corruption = corruption

    def loss(self, params: Params, batch: Batch) -> Tensor:
        images = batch["inputs"]
        corrupted = images + self.corruption * batch["noise"] if self.corruption else images
        return F.mse_loss(self.decode(params, self.encode(params, corrupted)), images)


class ImageAutoencoder(ReconstructionFamily):
    """Autoencoders of different depth, width and corruption of (varied) images.

    Args:
        data: see :class:`~lightning_lopt.tasks.reconstruction.ReconstructionFamily`, also for ``depths``, ``widths``
            and ``codes`` in ``options``.
        corruptions: deviations of the noise on pixels to draw from; by default half of the tasks have none.

    Raises:
        ValueError: if a list is empty, an entry is unknown or out of range, or data cannot be loaded.

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> family = ImageAutoencoder(images, depths=(1,), widths=(16,), codes=(4,), variety=False)
        >>> family.sample(torch.Generator().manual_seed(0)).name
        'image_autoencoder/mine/64-16-4-n1/silu/b64'
    """

    name = "image_autoencoder"
    task_class = ImageAutoencoderTask

    def __init__(
        self,
        data: DataLike | None = None,
        corruptions: Sequence[float] = (0.0, 0.0, 0.3, 1.0),
        **options: Any,
    ) -> None:
        super().__init__(data, **{"depths": (1, 2, 3), **options})
        self.ranges["corruptions"] = check_number_options(corruptions, "corruptions")

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        settings, shape = super()._draw(train, generator)
        corruption = self.pick("corruptions", generator)
        return settings | {"corruption": corruption}, f"{shape}-n{corruption:g}"
