"""Self-attention and transformers, as functions of parameters by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.layers import ACTIVATIONS, layer_norm, linear, mlp
from lightning_lopt.tasks.layout import Layout


def attention(params: Params, name: str, x: Tensor, heads: int, causal: bool = False) -> Tensor:
    r"""Multi-head self-attention.

    .. math:: W_o\,[\text{softmax}(q_h k_h^\top / \sqrt{d})\, v_h]_h, \qquad [q, k, v] = W_{qkv} x

    Args:
        params: contains ``name.qkv`` (3 W, W) and ``name.out`` (W, W), each with a bias; the rows of ``qkv`` are
            the rows of q, then of k, then of v, as in ``nn.MultiheadAttention``.
        name: prefix of these names.
        x: tokens, shape ``(B, T, W)``.
        heads: number of heads; divides W.
        causal: whether a token attends only to itself and earlier tokens.

    Returns:
        shape ``(B, T, W)``.

    References: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
    """
    # Plain products are used, since F.scaled_dot_product_attention has no batching rule on the CPU and loops over
    # particles with a warning. Time in ms, forward and backward under vmap over 16 particles (PyTorch 2.13, one thread
    # of an x86 server CPU):
    #
    #   (B, T, W, heads)   plain products   F.scaled_dot_product_attention
    #   (16, 32, 32, 2)              12.1                             13.1
    #   (32, 16, 32, 4)              12.8                             18.2
    batch, tokens, width = x.shape
    size = width // heads
    query, key, value = linear(params, f"{name}.qkv", x).reshape(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    scores = (query * size**-0.5) @ key.mT
    if causal:
        scores = scores + torch.full((tokens, tokens), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
    return linear(params, f"{name}.out", (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))


@dataclass(frozen=True)
class Transformer:
    """Blocks of attention and of a perceptron for each token, with residual connections, and a final normalisation.

    Args:
        width: features of a token W.
        depth: number of blocks.
        heads: attention heads; divides W.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`, of the perceptrons.
        prenorm: whether layer normalisation is at the start of each branch; otherwise it is after each addition.
        causal: whether a token attends only to itself and earlier tokens.
        expansion: hidden features of the perceptrons, in units of W.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    References: Xiong et al. 2020 on the position of the normalisation, https://arxiv.org/abs/2002.04745
    """

    width: int
    depth: int
    heads: int
    activation: str = "gelu"
    prenorm: bool = True
    causal: bool = False
    expansion: int = 2

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width, got {self.heads} heads for a width of {self.width}.")

    def add_to(self, layout: Layout) -> None:
        """Add the parameters of the transformer to a layout, from ``blocks.0.norm1.weight`` to ``norm.bias``."""
        for layer in range(self.depth):
            name = f"blocks.{layer}"
            layout.norm(f"{name}.norm1", self.width)
            layout.linear(f"{name}.attention.qkv", self.width, 3 * self.width)
            layout.linear(f"{name}.attention.out", self.width, self.width)
            layout.norm(f"{name}.norm2", self.width)
            layout.mlp((self.width, self.expansion * self.width, self.width), f"{name}.mlp", last="matrix")
        layout.norm("norm", self.width)

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        """Tokens, shape ``(B, T, W)``, to tokens of the same shape."""
        for layer in range(self.depth):
            block = f"blocks.{layer}"
            for norm, branch in ((f"{block}.norm1", self._attend), (f"{block}.norm2", self._transform)):
                if self.prenorm:
                    x = x + branch(params, block, layer_norm(params, norm, x))
                else:
                    x = layer_norm(params, norm, x + branch(params, block, x))
        return layer_norm(params, "norm", x)

    def _attend(self, params: Params, block: str, x: Tensor) -> Tensor:
        return attention(params, f"{block}.attention", x, self.heads, self.causal)

    def _transform(self, params: Params, block: str, x: Tensor) -> Tensor:
        return mlp(params, f"{block}.mlp", x, 2, ACTIVATIONS[self.activation])
