"""Reconstruction of images: the common part of all autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.checks import check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.accelerations import in_one_call
from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.data import DataLike
from lightning_lopt.tasks.examples import RandomExamplesTask
from lightning_lopt.tasks.image import ImageFamily
from lightning_lopt.tasks.labelled_images import LabelledImages
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout


class ReconstructionTask(RandomExamplesTask):
    """Two perceptrons, ``encoder.0`` and so on and ``decoder.0`` and so on, with noise in every batch.

    A batch is ``{"inputs": (*lead, B, D), "noise": (*lead, B, K)}``: images as rows, standard normal noise. In
    :meth:`full_batch` the noise is the same at every call.

    Args:
        train: images to train on; labels are not used.
        valid: held-out images.
        widths: widths of the encoder's hidden layers; the decoder has them in reverse order.
        code: number of inputs of the decoder.
        encoded: number of outputs of the encoder.
        noise: number K of random numbers for each image; 0 leaves ``"noise"`` out.
        error_weight: factor from the variance of all training pixels to the loss of an uninformed model.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.
    """

    def __init__(
        self,
        train: LabelledImages,
        valid: LabelledImages,
        widths: Sequence[int],
        *,
        code: int,
        encoded: int,
        noise: int,
        error_weight: float = 1.0,
        activation: str = "relu",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.features, *widths, encoded), "encoder", last="matrix")
        layout.mlp((code, *widths[::-1], train.features), "decoder")
        splits: dict[Split, Batch] = {"train": {"inputs": train.flat}, "valid": {"inputs": valid.flat}}
        super().__init__(splits, layout, error_weight * float(train.inputs.var(correction=0)) or 1.0, **options)
        self.layers = len(widths) + 1
        self.noise = noise
        self.activation = ACTIVATIONS[activation]

    def encode(self, params: Params, images: Tensor) -> Tensor:
        """Images (B, D) to the encoder's outputs (B, encoded)."""
        return mlp(params, "encoder", images, self.layers, self.activation)

    def decode(self, params: Params, code: Tensor) -> Tensor:
        """Codes (B, code) to images (B, D)."""
        return mlp(params, "decoder", code, self.layers, self.activation)

    @in_one_call(lambda task: not task.noise)
    def draw(self, generator: torch.Generator, *lead: int, split: Split = "train") -> Batch:
        return super().draw(generator, *lead, split=split)

    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        return {"noise": torch.randn(*examples, self.noise, generator=generator)} if self.noise else {}


class ReconstructionFamily(ImageFamily):
    """The common part of families of autoencoders of (varied) images, which draws depth, widths and code.

    Args:
        data: sources of images; see :class:`~lightning_lopt.tasks.image.ImageFamily`, also for ``options``.
        depths: numbers of hidden layers of the encoder to draw from.
        widths: widths to draw from, separately for each hidden layer.
        codes: dimensions of the code to draw from.

    Raises:
        ValueError: if a list is empty, an entry is unknown or out of range, or data cannot be loaded.
    """

    def __init__(
        self,
        data: DataLike | None = None,
        depths: Sequence[int] = (1, 2),
        widths: Sequence[int] = (16, 32, 64),
        codes: Sequence[int] = (2, 4, 8, 16),
        **options: Any,
    ) -> None:
        # deep networks whose outputs are values, not logits, have a huge loss with much larger initial weights
        super().__init__(data, **{"max_size": 16, "init_scales": (0.5, 1.25), **options})
        self.ranges |= {
            "depths": check_size_options(depths, "depths"),
            "widths": check_size_options(widths, "widths"),
            "codes": check_size_options(codes, "codes"),
        }

    def _draw(self, train: LabelledImages, generator: torch.Generator) -> tuple[dict[str, Any], str]:
        widths = [self.pick("widths", generator) for _ in range(self.pick("depths", generator))]
        code = self.pick("codes", generator)
        return {"widths": widths, "code": code}, "-".join(map(str, (train.features, *widths, code)))
