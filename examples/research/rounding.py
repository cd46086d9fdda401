"""Measure how rounding errors grow: a float32 and a float64 copy of a model get the same gradients.

    python examples/research/rounding.py                   # base, all problems, a minute or two
    python examples/research/rounding.py --rule adam --seeds 3 --only c36 conv

For each problem, the script prints the distance of the two copies after 1, 10 and 30 steps, divided by the distance
that the float64 copy has moved; it takes the largest value over seeds. Both copies get the gradients of the float64
copy, so training itself cannot increase the rounding errors.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lopt import LearnedOptimizer

DOUBLE = torch.float64
STEPS, HORIZON = 30, 300
SHOWN = (1, 10, 30)


class Problem(NamedTuple):
    """A model in float64, its examples, the batch size, and the loss of outputs and targets."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    batch: int = 256
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


def perceptron(width: int = 32, outputs: int = 10) -> nn.Sequential:
    hidden = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def classes(inputs: Tensor) -> Tensor:
    """Targets of a random linear teacher, shape (n,), for inputs (n, d)."""
    return (inputs @ torch.randn(inputs.shape[1], 10, dtype=DOUBLE)).argmax(1)


def on_vectors(inputs: Tensor, width: int = 32, batch: int = 256) -> Problem:
    return Problem(perceptron(width), inputs, classes(inputs), batch)


def vectors() -> Tensor:
    return torch.randn(256, 64, dtype=DOUBLE)


def dead_inputs(width: int) -> Problem:
    inputs = vectors()
    inputs[:, :20] = 0
    return on_vectors(inputs, width)


def duplicated_inputs() -> Problem:
    inputs = vectors()
    inputs[:, 32:] = inputs[:, :32]
    return on_vectors(inputs)


def duplicated_units() -> Problem:
    problem = on_vectors(vectors())
    first, second = problem.model[0], problem.model[2]
    with torch.no_grad():
        first.weight[16:], first.bias[16:] = first.weight[:16], first.bias[:16]
        second.weight[:, 16:] = second.weight[:, :16]
    return problem


def dead_units() -> Problem:
    problem = on_vectors(vectors())
    with torch.no_grad():
        problem.model[0].bias[:12] -= 100
        problem.model[2].bias[:8] -= 100
    return problem


def zero_head() -> Problem:
    problem = on_vectors(vectors())
    nn.init.zeros_(problem.model[-1].weight)
    return problem


def scaled_inputs() -> Problem:
    inputs = vectors()
    return Problem(perceptron(), inputs * torch.logspace(-3, 3, 64, dtype=DOUBLE), classes(inputs))


def regression() -> Problem:
    inputs = vectors()
    targets = (inputs @ torch.randn(64, 1, dtype=DOUBLE)).tanh()
    return Problem(perceptron(outputs=1), inputs, targets, loss=F.mse_loss)


def autoencoder() -> Problem:
    inputs = vectors() @ torch.randn(64, 64, dtype=DOUBLE).tril()
    return Problem(perceptron(16, outputs=64), inputs, inputs, loss=F.mse_loss)


def convolutions(normalised: bool) -> Problem:
    images = torch.randn(64, 3, 10, 10, dtype=DOUBLE)
    norms = [nn.BatchNorm2d(16) if normalised else nn.Identity() for _ in range(2)]
    layers = [nn.Conv2d(3, 16, 3, stride=2), norms[0], nn.ReLU(), nn.Conv2d(16, 16, 3), norms[1], nn.ReLU()]
    return Problem(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)), images, classes(images.flatten(1)), 32)


class Transformer(nn.Module):
    """A language model of two blocks with tokens that never occur."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.places = nn.Parameter(0.02 * torch.randn(16, 32))
        blocks = [nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens) + self.places)).mT


def transformer() -> Problem:
    tokens = torch.randint(30, (64, 17))
    return Problem(Transformer(), tokens[:, :-1], tokens[:, 1:], 8)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "dead inputs": lambda: dead_inputs(32),
    "wide": lambda: dead_inputs(128),
    "narrow": lambda: dead_inputs(8),
    "duplicated inputs": duplicated_inputs,
    "duplicated units": duplicated_units,
    "dead units": dead_units,
    "head of zeros": zero_head,
    "batch of 8": lambda: on_vectors(vectors(), 64, 8),
    "batch of 1": lambda: on_vectors(vectors(), 64, 1),
    "scaled inputs": scaled_inputs,
    "low-rank inputs": lambda: on_vectors(torch.randn(256, 5, dtype=DOUBLE) @ torch.randn(5, 64, dtype=DOUBLE)),
    "one-hot inputs": lambda: on_vectors(F.one_hot(torch.randint(64, (256,)), 64).to(DOUBLE)),
    "whitened inputs": lambda: on_vectors(torch.linalg.qr(vectors())[0] * 16),
    "regression": regression,
    "autoencoder": autoencoder,
    "convolutions": lambda: convolutions(False),
    "batch norm": lambda: convolutions(True),
    "transformer": transformer,
}


def distances(problem: Problem, rule: str) -> list[float]:
    """Distance of the two copies after each step, divided by the distance that the float64 copy has moved."""
    double = problem.model.double()
    single = copy.deepcopy(double).float()

    def entries(model: nn.Module) -> Tensor:
        return torch.cat([param.detach().double().flatten() for param in model.parameters()])

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        if rule == "adam":
            return torch.optim.Adam(model.parameters(), 1e-3)
        return LearnedOptimizer(model, rule, total_steps=HORIZON)

    start = entries(double)
    optimizers = [optimizer_of(double), optimizer_of(single)]
    apart = []
    for _ in range(STEPS):
        rows = (
            torch.randint(len(problem.inputs), (problem.batch,)) if problem.batch < len(problem.inputs) else slice(None)
        )
        loss = problem.loss(double(problem.inputs[rows]), problem.targets[rows])
        double.zero_grad()
        loss.backward()
        for param, single_param in zip(double.parameters(), single.parameters(), strict=True):
            single_param.grad = None if param.grad is None else param.grad.float()
        for optimizer in optimizers:
            optimizer.step(loss.detach)
        apart.append(float((entries(double) - entries(single)).norm() / (entries(double) - start).norm()))
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="base", help="an embedded rule, a folder, or adam")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of problems")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':20}" + "".join(f"{f'step {step}':>10}" for step in SHOWN))
    for name, build in PROBLEMS.items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        runs = []
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            runs.append(distances(build(), arguments.rule))
        print(f"{name:20}" + "".join(f"{max(run[step - 1] for run in runs):>10.1e}" for step in SHOWN), flush=True)


if __name__ == "__main__":
    main()
