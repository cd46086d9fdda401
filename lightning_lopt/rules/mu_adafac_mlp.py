"""AdafacMLP in the maximal-update parametrisation: θ from narrow models is used for wide models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_lopt.checks import check_sizes
from lightning_lopt.rules.adafac_mlp import AdafacMLPRule
from lightning_lopt.rules.base import Role, register_rule
from lightning_lopt.rules.shared.arithmetic import matrix_shape
from lightning_lopt.rules.shared.moments import Matrix


@register_rule("mu_adafac_mlp")
class MuAdafacMLPRule(AdafacMLPRule):
    r"""µLO: :class:`AdafacMLPRule` with steps that shrink with the width of the layer.

    .. math:: \Delta p = \min\Big( 1, \frac{w_0}{\text{inputs}} \Big)\, \Delta p_{\text{AdafacMLP}}

    for matrices and heads, with the number of inputs of the layer (columns of the matrix; the reference counts only the
    channels of a convolution) and the base width :math:`w_0`; the steps of embeddings and vectors are not scaled. The
    change of the output of every layer then stays the same for wider models.

    The user is responsible for two parts of µP. First, µP initialises the head of a wider model with smaller weights
    (standard deviation 1/inputs). Second, µP does not scale the steps of the first layer, whose number of inputs does
    not grow with the width; here, a first layer with more inputs than the base width is scaled by a constant unless its
    group has the role ``"embedding"``.

    Args:
        base_width: :math:`w_0`, width of the models in the meta-training of θ.
        hidden, step_mult, exp_mult, momentum_decays, second_moment_decay, factored_decays, matrix: as in
            :class:`AdafacMLPRule`.

    Raises:
        ValueError: if an argument lies outside its range.

    State bytes per parameter: as in :class:`AdafacMLPRule`.
    References: Thérien et al. 2024, https://arxiv.org/abs/2406.00153; Yang et al. 2022,
    https://arxiv.org/abs/2203.03466, table 3 (Adam).

    Example:
        >>> from lightning_lopt import StepContext
        >>> mu, plain = MuAdafacMLPRule(base_width=128), AdafacMLPRule(hidden=32)
        >>> _ = plain.load_state_dict(mu.state_dict())
        >>> params, grads = {"w": torch.ones(4, 512)}, {"w": torch.randn(4, 512)}
        >>> context = StepContext(step=torch.tensor(0), total_steps=torch.tensor(10))
        >>> steps = [rule(params, grads, rule.init_state(params, roles={}), context)[0]["w"] for rule in (mu, plain)]
        >>> torch.allclose(steps[0], steps[1] / 4)  # 512 inputs are four times the base width
        True
    """

    def __init__(
        self,
        base_width: int = 128,
        hidden: int = 32,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
        second_moment_decay: float = 0.999,
        factored_decays: Sequence[float] = (0.9, 0.99, 0.999),
        matrix: Matrix = "flat",
    ) -> None:
        super().__init__(
            hidden, step_mult, exp_mult, momentum_decays, second_moment_decay, factored_decays, matrix
        )  # fmt: skip
        check_sizes(base_width=base_width)
        self.base_width = base_width

    @property
    def config(self) -> dict[str, Any]:
        return {"base_width": self.base_width} | super().config

    def _step_factor(self, param: Tensor, role: Role) -> float:
        if param.ndim < 2 or role not in ("matrix", "head"):
            return 1.0
        inputs = matrix_shape(param.shape)[1] if self.matrix == "flat" else param.shape[-2]
        return min(1.0, self.base_width / max(inputs, 1))
