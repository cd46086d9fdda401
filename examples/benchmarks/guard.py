"""Final losses under a guard: four harmful rules on ten small tasks, and the number of false alarms with ``base``.

    python examples/benchmarks/guard.py harm            # 4 x 10 runs and default AdamW, about 10 minutes
    python examples/benchmarks/guard.py harm --tasks gru conv --rules flipped
    python examples/benchmarks/guard.py base --runs 100  # 300 steps each, on tasks of other sizes and seeds

A final loss is the mean training loss of the last twentieth of the steps. The ratio compares final losses with those
of AdamW, or decreases of the loss if losses may be negative. A ratio above 1 is worse than AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_lopt import LearnedOptimizer, StepContext, UpdateRule, load_rule
from lightning_lopt.rules.base import Role, TensorInputs

Loss = Callable[[torch.Generator], Tensor]


class Altered(UpdateRule):
    """A rule whose updates are replaced by ``change(update, step)``; the step is 0-dim."""

    def __init__(self, rule: UpdateRule, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rule, self.change = rule, change
        self.reads_loss, self.reads_horizon, self.period = rule.reads_loss, rule.reads_horizon, rule.period

    @property
    def config(self) -> dict[str, Any]:
        return self.rule.config

    def phase_of(self, step: int) -> int | None:
        return self.rule.phase_of(step)

    def init_tensor(self, param: Tensor, role: Role) -> dict[str, Tensor]:
        return self.rule.init_tensor(param, role)

    def init_shared(self, like: Tensor) -> dict[str, Tensor]:
        return self.rule.init_shared(like)

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> Any:
        return self.rule.at(shared, context), context.step

    def summary(self, inputs: TensorInputs, at: Any) -> dict[str, Tensor]:
        return self.rule.summary(inputs, at[0])

    def exchange(
        self, columns: dict[str, Tensor], at: Any, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.rule.exchange(columns, at[0], shared, context)

    def step(self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: Any) -> tuple[Tensor, dict[str, Tensor]]:
        update, next_state = self.rule.step(inputs, controls, at[0])
        return self.change(update, at[1]), next_state


HARM: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flipped": lambda update, step: -update,
    "hundredfold": lambda update, step: 100 * update,
    "broken": lambda update, step: torch.where(step < 300, update, math.nan),
    "frozen": lambda update, step: 0 * update,
}


class Task(NamedTuple):
    """A model, and its loss on a batch that is drawn from a generator."""

    model: nn.Module
    loss: Loss
    may_be_negative: bool = False


def _blobs(classes: int, side: int, noise: float, wrong: float = 0.0) -> tuple[Tensor, Callable[..., Any]]:
    means = torch.randn(classes, side)

    def batch(generator: torch.Generator, size: int = 32) -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (size,), generator=generator)
        x = means[y] + noise * torch.randn(size, side, generator=generator)
        random_labels = torch.randint(classes, (size,), generator=generator)
        return x, torch.where(torch.rand(size, generator=generator) < wrong, random_labels, y)

    return means, batch


def _mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def classify(width: int = 32, wrong: float = 0.0) -> Task:
    _, batch = _blobs(10, 24, 2.0, wrong)
    model = _mlp(24, width, width, 10)

    def loss(generator: torch.Generator) -> Tensor:
        x, y = batch(generator)
        return functional.cross_entropy(model(x), y)

    return Task(model, loss)


def noisy_labels(width: int = 32) -> Task:
    return classify(width, wrong=0.5)


def regress(width: int = 32) -> Task:
    model, teacher = _mlp(12, width, width, 1), _mlp(12, 16, 1)

    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(32, 12, generator=generator)
        y = teacher(x).detach() * 3 + 0.1 * torch.randn(32, 1, generator=generator)
        return functional.mse_loss(model(x), y)

    return Task(model, loss)


def autoencode(width: int = 32) -> Task:
    mixing = torch.randn(4, 24)
    model = nn.Sequential(_mlp(24, width, 4), _mlp(4, width, 24), nn.Sigmoid())

    def loss(generator: torch.Generator) -> Tensor:
        x = torch.sigmoid(torch.randn(32, 4, generator=generator) @ mixing)
        return functional.binary_cross_entropy(model(x), x)

    return Task(model, loss)


def conv(width: int = 8) -> Task:
    patterns = torch.randn(6, 1, 8, 8)
    model = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(4 * width, 6),
    )

    def loss(generator: torch.Generator) -> Tensor:
        y = torch.randint(6, (16,), generator=generator)
        x = patterns[y] + torch.randn(16, 1, 8, 8, generator=generator)
        return functional.cross_entropy(model(x), y)

    return Task(model, loss)


class _Gru(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(8, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(x))[0])


class _Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(8, width), nn.Parameter(0.1 * torch.randn(12, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.embedding(x) + self.place[: x.shape[1]]
        return self.head(self.blocks(h, mask=mask, is_causal=True))


def _sequences(model: nn.Module) -> Task:
    follows = torch.softmax(2.0 * torch.randn(8, 8, 8), -1)

    def loss(generator: torch.Generator) -> Tensor:
        columns = list(torch.randint(8, (2, 16), generator=generator))
        for _ in range(11):
            chances = follows[columns[-2], columns[-1]]
            columns.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
        x = torch.stack(columns, 1)
        return functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    return Task(model, loss)


def gru(width: int = 24) -> Task:
    return _sequences(_Gru(width))


def transformer(width: int = 16) -> Task:
    return _sequences(_Transformer(width))


def least_squares(width: int = 20) -> Task:
    scales = torch.logspace(0, -2, width)
    target = torch.randn(width)
    model = nn.Linear(width, 1)

    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(64, width, generator=generator) * scales
        return 0.5 * (model(x)[:, 0] - x @ target).square().mean()

    return Task(model, loss)


def density(width: int = 24) -> Task:
    mixing = torch.randn(2, 6)
    model = nn.ModuleDict({"encode": _mlp(6, width, 4), "decode": _mlp(2, width, 12)})

    def loss(generator: torch.Generator) -> Tensor:
        x = 0.2 * torch.tanh(torch.randn(32, 2, generator=generator) @ mixing)
        mean, spread = model["encode"](x).chunk(2, 1)
        code = mean + spread.exp() * torch.randn(32, 2, generator=generator)
        center, width_ = model["decode"](code).chunk(2, 1)
        width_ = width_.clamp(-4, 4)
        fit = (0.5 * ((x - center) / width_.exp()).square() + width_ + 0.92).sum(1)
        apart = (0.5 * (mean.square() + (2 * spread).exp()) - spread - 0.5).sum(1)
        return (fit + apart).mean()

    return Task(model, loss, may_be_negative=True)


def policy(width: int = 24) -> Task:
    rewards = torch.randn(6, 8)
    model = _mlp(6, width, 6)
    weights = torch.randn(8, 6)

    def loss(generator: torch.Generator) -> Tensor:
        x = torch.randn(64, 8, generator=generator)
        chances = torch.softmax(model(x @ weights / 3), -1)
        action = torch.multinomial(chances.detach(), 1, generator=generator)[:, 0]
        reward = (rewards[action] * x).sum(1) + torch.randn(64, generator=generator)
        # the score-function gradient, with the negative reward as the value of the loss
        surrogate = -(reward - reward.mean()) * chances[torch.arange(64), action].clamp(min=1e-20).log()
        return (surrogate - surrogate.detach() - reward).mean()

    return Task(model, loss, may_be_negative=True)


TASKS: dict[str, Callable[..., Task]] = {
    "classify": classify,
    "regress": regress,
    "autoencode": autoencode,
    "noisy_labels": noisy_labels,
    "conv": conv,
    "gru": gru,
    "transformer": transformer,
    "least_squares": least_squares,
    "density": density,
    "policy": policy,
}


def losses_of(task: Task, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    """Losses of a run; the model is trained in place."""
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(generator)
        loss.backward()
        losses.append(float(loss.detach()))
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss)
        else:
            optimizer.step()
    return losses


def end_of(losses: list[float]) -> float:
    last = losses[-max(len(losses) // 20, 1) :]
    return sum(last) / len(last)


def build(name: str, seed: int, **sizes: int) -> Task:
    torch.manual_seed(seed)
    return TASKS[name](**sizes)


def harm(names: list[str], rules: list[str], steps: int, seed: int) -> None:
    worst = 0.0
    for name in names:
        task = build(name, seed)
        losses = losses_of(task, torch.optim.AdamW(task.model.parameters(), lr=1e-3), steps, seed)
        start, target = sum(losses[:3]) / 3, end_of(losses)
        print(f"{name}: {start:.4f} to {target:.4f} with AdamW", flush=True)
        for rule in rules:
            task = build(name, seed)
            altered = Altered(load_rule("base"), HARM[rule])
            optimizer = LearnedOptimizer(task.model, altered, total_steps=steps, guard=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                end = end_of(losses_of(task, optimizer, steps, seed))
            ratio = (start - target) / (start - end) if task.may_be_negative else end / target
            ratio = math.inf if ratio < 0 else ratio
            worst = max(worst, ratio)
            print(f"  {rule:12s} {end:9.4f} {ratio:6.3f} of AdamW's; {optimizer.guard_state}", flush=True)
    print(f"worst ratio {worst:.3f}")


def base(runs: int, steps: int) -> None:
    switches = 0
    for run in range(runs):
        name = list(TASKS)[run % len(TASKS)]
        sizes = {"width": [8, 16, 24, 48][run // len(TASKS) % 4]}
        horizon = [steps, steps // 2, 2 * steps][run % 3]
        task = build(name, 1000 + run, **sizes)
        optimizer = LearnedOptimizer(task.model, "base", total_steps=horizon, guard=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = losses_of(task, optimizer, horizon, run)
        if optimizer.guard_state != "active":
            switches += 1
            print(f"run {run}, {name}, {horizon} steps, to {end_of(losses):.4f}: {optimizer.guard_state}", flush=True)
    print(f"the guard switched to AdamW in {switches} of {runs} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["harm", "base"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rules", nargs="+", choices=HARM, default=list(HARM))
    parser.add_argument("--steps", type=int, help="1000 for harm, 300 for base")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "harm":
        harm(arguments.tasks, arguments.rules, arguments.steps or 1000, arguments.seed)
    else:
        base(arguments.runs, arguments.steps or 300)


if __name__ == "__main__":
    main()
