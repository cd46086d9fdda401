"""The workloads of a benchmark: a model, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lopt.evaluation.benchmark.networks import (
    ManyTensors,
    TextTransformer,
    VisionTransformer,
    resnet50,
    small_cnn,
)
from lightning_lopt.evaluation.step_cost import ParamLeaves
from lightning_lopt.rules.contract.roles import roles_of


@dataclass(frozen=True)
class Workload:
    """A model with batches and a loss, on one device.

    Attributes:
        name: name in tables.
        module: the model.
        batch: function that returns a mini-batch.
        loss: function from a mini-batch to the loss of the module, 0-dim, in the unit of the module.
    """

    name: str
    module: nn.Module
    batch: Callable[[], Any]
    loss: Callable[[Any], Tensor]

    @property
    def leaves(self) -> ParamLeaves:
        """The trained tensors with their names and roles."""
        roles = roles_of(self.module)
        return [(name, param, roles[name]) for name, param in self.module.named_parameters() if param.requires_grad]


@dataclass(frozen=True)
class Recipe:
    """Instructions for building a named workload.

    Attributes:
        about: description for readers.
        build: function that makes the model, with random weights.
        inputs: shape of one input. Inputs are random integers below ``symbols``, or normal numbers without ``symbols``.
        batch: number of examples in a mini-batch.
        symbols: size of the vocabulary of a text model; ``None`` for other models.
        classes: number of classes of labels. ``None`` means: a text model predicts the next token, and any other model
            is trained with the squared error to 0.
    """

    about: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    batch: int
    symbols: int | None = None
    classes: int | None = None


RECIPES: dict[str, Recipe] = {
    "char_transformer": Recipe(
        "4 blocks of width 128 on 64 characters, 0.8 million parameters",
        lambda: TextTransformer(96, 64, 128, 4, 4),
        (64,),
        12,
        symbols=96,
    ),
    "text_encoder": Recipe(
        "6 blocks of width 384 on 128 tokens, 22 million parameters",
        lambda: TextTransformer(30522, 512, 384, 6, 12, classes=2),
        (128,),
        16,
        symbols=30522,
        classes=2,
    ),
    "linear_512": Recipe(
        "12 layers of 512 x 512, 3.1 million parameters",
        lambda: nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(512, 512, bias=False), nn.Tanh()))),
        (512,),
        64,
    ),
    "mlp": Recipe(
        "3 layers of 64, 32 and 32 inputs",
        lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)),
        (64,),
        64,
        classes=10,
    ),
    "cnn": Recipe("3 convolutions on images of 16 x 16", small_cnn, (3, 16, 16), 64, classes=10),
    "many_tensors": Recipe("600 tensors of 4 x 16", lambda: ManyTensors(600), (600, 16), 16),
    "vit_b": Recipe(
        "ViT-B/16 on images of 224 x 224, 86 million parameters",
        lambda: VisionTransformer(224, 16, 768, 12, 12, 1000),
        (3, 224, 224),
        128,
        classes=1000,
    ),
    "gpt2": Recipe(
        "GPT-2 on 1024 tokens, 124 million parameters",
        lambda: TextTransformer(50257, 1024, 768, 12, 12),
        (1024,),
        8,
        symbols=50257,
    ),
    "gpt2_medium": Recipe(
        "GPT-2 medium on 1024 tokens, 355 million parameters",
        lambda: TextTransformer(50257, 1024, 1024, 24, 16),
        (1024,),
        4,
        symbols=50257,
    ),
    "resnet50": Recipe(
        "ResNet-50 on images of 224 x 224, 26 million parameters", resnet50, (3, 224, 224), 64, classes=1000
    ),
}
"""Named workloads."""


def check_recipe(name: str, length: int | None = None) -> None:
    """Check that a recipe exists, and that it is a text model if ``length`` is not ``None``.

    Raises:
        ValueError: if there is no such recipe, or a ``length`` is given for a model that does not read text.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no model {name!r}; use FILE.py:NAME or one of {', '.join(map(repr, RECIPES))}.")
    if length is not None and RECIPES[name].symbols is None:
        raise ValueError(f"the model {name!r} does not read text; leave the length out.")


def named_workload(
    name: str,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    batch: int | None = None,
    length: int | None = None,
    seed: int = 0,
) -> Workload:
    """A workload of :data:`RECIPES`, with random weights and random data.

    Args:
        name: key of the recipe.
        device: device of the workload.
        dtype: type of parameters and images.
        batch: number of examples in a mini-batch; ``None`` for the recipe's number.
        length: number of tokens of a text; ``None`` for the recipe's number.
        seed: seed of weights and data.

    Raises:
        ValueError: in the cases of :func:`check_recipe`.
    """
    check_recipe(name, length)
    recipe = RECIPES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = recipe.build().to(device, dtype)
    random = torch.Generator(device).manual_seed(seed)
    count = batch or recipe.batch
    shape = (count, *(recipe.inputs if length is None else (length,)))

    def draw() -> tuple[Tensor, Tensor | None]:
        if recipe.symbols is None:
            inputs = torch.randn(shape, device=device, generator=random, dtype=dtype)
        else:
            inputs = torch.randint(recipe.symbols, shape, device=device, generator=random)
        if recipe.classes is None:
            return inputs, None if recipe.symbols is None else inputs.roll(-1, 1)
        return inputs, torch.randint(recipe.classes, (count,), device=device, generator=random)

    def loss(batch: tuple[Tensor, Tensor | None]) -> Tensor:
        inputs, target = batch
        output = module(inputs)
        if target is None:
            return output.float().square().mean()  # type: ignore[no-any-return]
        return functional.cross_entropy(output.flatten(0, -2).float(), target.flatten())

    return Workload(name, module, draw, loss)


def users_workload(model: str, datamodule: str | None, device: torch.device) -> Workload:
    """A LightningModule of a user's file with the first batches of its data; both are read in the way of ``assess``.

    Args:
        model: ``FILE.py:NAME`` of a LightningModule class, or of a function that builds a module.
        datamodule: ``FILE.py:NAME`` of a data module; ``None`` for the dataloaders of the module.
        device: device of the workload.

    Raises:
        ValueError: with one sentence, if the module or its data cannot be used.
    """
    from lightning_lopt.tasks.module_with_data import ModuleWithData
    from lightning_lopt.user_files import load_object

    build = load_object(model)
    data = None if datamodule is None else load_object(datamodule)()
    users_module = ModuleWithData(lambda: build().to(device), data, None, total_steps=1000)
    (step,) = users_module.copies(1)
    counter = iter(range(10**9))

    def batch() -> Any:
        return users_module.first[next(counter) % len(users_module.first)]

    return Workload(model, step.module, batch, lambda batch: step.loss_in(step(batch)))
