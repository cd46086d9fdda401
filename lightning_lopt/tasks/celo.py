"""The four small image problems on which Celo and Celo2 were meta-trained."""

from __future__ import annotations

from typing import Any

from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.image_mlp import ImageMLP


class Celo4(ImageMLP):
    """Perceptrons 64-32-10 with ReLU on 8×8 grey images, batches of 64, pixels in [0, 1] without standardisation.

    Initial weights are normal with deviation 1/√fan_in, truncated at two deviations; biases are 0. The papers draw from
    MNIST, Fashion-MNIST, CIFAR-10 and SVHN with equal probability; here ``data`` lists the data sets that the user has
    (paths, as for :class:`~lightning_lopt.tasks.ImageMLP`), and ``None`` means scikit-learn's digits.
    ``config["data"]`` of the family names the data. Images are resized by averages over areas; the papers interpolate.

    Args:
        data: one or several sources of images.
        options: ``valid_fraction``, ``max_valid``; all other settings are fixed.

    References: Moudgil et al. 2025, https://arxiv.org/abs/2501.12670

    Example:
        >>> from lightning_lopt.tasks import LabelledImages
        >>> images = LabelledImages.from_arrays(torch.rand(60, 8, 8), torch.arange(60) % 10, "mine")
        >>> Celo4(images).sample(torch.Generator().manual_seed(0)).name
        'celo4/mine/64-32-10/relu/b64'
    """

    name = "celo4"

    def __init__(self, data: DataLike | None = None, **options: Any) -> None:
        super().__init__(
            data,
            depths=(1,),
            widths=(32,),
            activations=("relu",),
            batch_sizes=(64,),
            schemes=("lecun",),
            variety=False,
            size=8,
            grey=True,
            standardise=False,
            **options,
        )
