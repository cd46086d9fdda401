"""Badly conditioned least squares: linear models with known optimum and condition number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lopt.checks import check_number_options, check_size_options
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks._draw import integer
from lightning_lopt.tasks.base import Batch
from lightning_lopt.tasks.examples import ExamplesTask
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.model_family import ModelFamily

VALID = 256


class LeastSquaresTask(ExamplesTask):
    r"""Half the mean squared error of a linear model, in mini-batches of rows.

    .. math:: L(W) = \frac1{2NK} \sum_n \lVert W x_n - y_n \rVert^2

    The only parameter is ``"weight"``, W of shape ``(K, D)``. The Hessian of each of its rows is
    :math:`H / K` with :math:`H = \frac1N \sum_n x_n x_n^\top`.

    Args:
        train: ``{"inputs": (N, D), "targets": (N, K)}``, float32.
        valid: held-out rows.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights.
        options: ``batch_size``, ``name``, ``config``.

    Example:
        >>> inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> rows = {"inputs": inputs, "targets": inputs @ torch.tensor([[1.0], [2.0], [3.0]])}
        >>> task = LeastSquaresTask(rows, rows, batch_size=8)
        >>> task.loss({"weight": torch.tensor([[1.0, 2.0, 3.0]])}, task.full_batch("valid")).item()
        0.0
    """

    def __init__(
        self, train: Batch, valid: Batch, scheme: str = "uniform", init_scale: float = 1.0, **options: Any
    ) -> None:
        targets = train["targets"]
        layout = Layout(scheme, init_scale)
        layout.weight("weight", (targets.shape[1], train["inputs"].shape[1]))
        scale = float(0.5 * targets.square().mean()) or 1.0
        super().__init__({"train": train, "valid": valid}, layout, scale, **options)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return 0.5 * F.mse_loss(F.linear(batch["inputs"], params["weight"]), batch["targets"])

    def optimum(self) -> Params:
        """The parameters of lowest loss on the whole training split, solved in float64."""
        data = self.splits["train"]
        solution = torch.linalg.lstsq(data["inputs"].double(), data["targets"].double()).solution
        return {"weight": solution.mT.float().contiguous()}


class LeastSquares(ModelFamily):
    r"""Least squares with a chosen condition number κ of H, whose eigenvalues run from 1 down to 1/κ.

    Training inputs are :math:`\sqrt N U S V^\top` with random orthonormal columns U (N, D) and V (D, D), and singular
    values S spaced evenly in their logarithm from 1 to :math:`\kappa^{-1/2}`, so H is exactly :math:`V S^2 V^\top`;
    held-out rows are normal with this covariance. The true weights have normal coordinates :math:`z_i s_i^{-a}` in the
    basis V: with a = 0, flat directions hardly matter for the loss; with a = 1, all directions matter equally.

    Args:
        dims: numbers of inputs D to draw from.
        outputs: numbers of outputs K to draw from.
        conditions: condition numbers κ to draw from, >= 1.
        alignments: exponents a to draw from.
        ratios: rows for each input, N / D, to draw from, >= 1.
        noises: deviations of the noise in targets to draw from, relative to the deviation of the targets.
        options: ``batch_sizes``, ``schemes``, ``init_scales`` of :class:`ModelFamily`.

    Raises:
        ValueError: if a list is empty or an entry is out of range.

    Example:
        >>> family = LeastSquares(dims=(8,), outputs=(1,), conditions=(100.0,))
        >>> task = family.sample(torch.Generator().manual_seed(0))
        >>> task.name, tuple(task.full_batch("train")["inputs"].shape)
        ('least_squares/d8x1/k100-a0.5-r16-n0.01~a1ded3/he/b64', (128, 8))
    """

    name = "least_squares"

    def __init__(
        self,
        dims: Sequence[int] = (8, 16, 32, 64),
        outputs: Sequence[int] = (1, 4, 16),
        conditions: Sequence[float] = (1.0, 1e2, 1e4, 1e6),
        alignments: Sequence[float] = (0.0, 0.5, 1.0),
        ratios: Sequence[int] = (4, 16, 64),
        noises: Sequence[float] = (0.0, 0.01, 0.1, 0.5),
        **options: Any,
    ) -> None:
        super().__init__(activations=None, **options)
        self.ranges |= {
            "dims": check_size_options(dims, "dims"),
            "outputs": check_size_options(outputs, "outputs"),
            "conditions": check_number_options(conditions, "conditions", 1.0),
            "alignments": check_number_options(alignments, "alignments"),
            "ratios": check_size_options(ratios, "ratios"),
            "noises": check_number_options(noises, "noises"),
        }

    def sample(self, generator: torch.Generator) -> LeastSquaresTask:
        settings = self.draw_common(generator)
        keys = ("dim", "output", "condition", "alignment", "ratio", "noise")
        drawn_settings = {key: self.pick(f"{key}s", generator) for key in keys}
        drawn_settings["tag"] = f"{integer(0, 16**6, generator):06x}"
        dim, rows = drawn_settings["dim"], drawn_settings["dim"] * drawn_settings["ratio"]
        singular = torch.logspace(0, -0.5, dim, base=drawn_settings["condition"], dtype=torch.float64)
        basis = _orthonormal(dim, dim, generator)
        # in float64, since float32 would lose the digits of products with the smallest singular values
        whitened = {
            "train": rows**0.5 * _orthonormal(rows, dim, generator),
            "valid": torch.randn(VALID, dim, generator=generator).double(),
        }
        truth = (
            torch.randn(drawn_settings["output"], dim, generator=generator).double()
            * singular ** -drawn_settings["alignment"]
        )
        truth = truth / (truth * singular).square().sum(1, keepdim=True).sqrt()  # the targets then have mean square 1
        splits = {}
        for split, coordinates in whitened.items():
            scaled = coordinates * singular
            error = torch.randn(len(scaled), drawn_settings["output"], generator=generator).double()
            targets = scaled @ truth.mT + drawn_settings["noise"] * error
            splits[split] = {"inputs": (scaled @ basis.mT).float(), "targets": targets.float()}
        label = "d{dim}x{output}/k{condition:g}-a{alignment:g}-r{ratio}-n{noise:g}~{tag}".format(**drawn_settings)
        config = {"family": self.name} | drawn_settings | settings
        name = self.task_name(label, settings["scheme"], settings)
        return LeastSquaresTask(splits["train"], splits["valid"], **settings, name=name, config=config)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns, float64, shape ``(rows, columns)``, ``rows >= columns``."""
    columns_only: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator).double()).Q
    return columns_only
