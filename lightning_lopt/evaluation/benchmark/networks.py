"""Networks for benchmarks, with random weights; they need no package besides torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm transformer block: attention, and a perceptron of four times the width."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and the result have shape (batch, tokens, width)."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (part.view(shape).transpose(1, 2) for part in self.attention(self.norm1(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.projection(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class TextTransformer(nn.Module):
    """A transformer on tokens, integers of shape (batch, tokens).

    Args:
        symbols: size of the vocabulary.
        length: largest number of tokens.
        width, depth, heads: sizes of the blocks.
        classes: number of classes for a classification by the mean over the tokens. ``None`` means a language model:
            each token predicts the next token, and the embedding is the output matrix.
    """

    def __init__(
        self, symbols: int, length: int, width: int, depth: int, heads: int, classes: int | None = None
    ) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=classes is None) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols, bias=False) if classes is None else nn.Linear(width, classes)
        if classes is None:
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.head.weight = self.embedding.weight
        self.classes = classes

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (batch, tokens, symbols) or (batch, classes)."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.norm(self.blocks(x))
        return self.head(x if self.classes is None else x.mean(1))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """ViT (https://arxiv.org/abs/2010.11929) on images of shape (batch, 3, side, side)."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut, as in ResNet-50 (https://arxiv.org/abs/1512.03385)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, side: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs)]

        outputs = 4 * width
        self.layers = nn.Sequential(
            *convolution(inputs, width, 1, 1),
            nn.ReLU(),
            *convolution(width, width, 3, stride),
            nn.ReLU(),
            *convolution(width, outputs, 1, 1),
        )
        shape_changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)) if shape_changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` has shape (batch, channels, height, width)."""
        return functional.relu(self.layers(x) + self.shortcut(x))


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50 on images of shape (batch, 3, side, side)."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            blocks.append(Bottleneck(inputs, width, 2 if index == 0 and width > 64 else 1))
            inputs = 4 * width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


def small_cnn(classes: int = 10) -> nn.Module:
    """Three convolutions on images of shape (batch, 3, 16, 16)."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


class ManyTensors(nn.Module):
    """``count`` matrices of 4 x 16; each matrix has a separate input. The inputs have shape (batch, count, 16)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([0.25 * torch.randn(4, 16) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        """The products of matrices and inputs, shape (batch, count * 4)."""
        return torch.einsum("kij,bkj->bki", torch.stack(list(self.matrices)), x).flatten(1)
