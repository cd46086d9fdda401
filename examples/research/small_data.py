"""Problems with little data, noise and dropout, for choosing by validation loss; they are in no report.

python examples/research/small_data.py
python examples/research/small_data.py --only blocks graph --change constants.log_step_size-0.5 --seeds 3 --lr 0.3

For each problem, the script prints three losses: the final training loss (mean of the last 5 % of the steps, with
dropout), the final validation loss, and the lowest of 20 validation losses. The first figures are losses of AdamW with
a cosine schedule at the best of five learning rates, which is chosen for each of the three losses separately. The next
figures are logarithms of the ratio to AdamW (below 0 is better), for `base` and for each rule that is compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from constants import changed, configured
from torch import Tensor, nn

from lightning_lopt import LearnedOptimizer, UpdateRule
from lightning_lopt.tasks.finetune.synthetic_images import draw_images
from lightning_lopt.tasks.text import resolve_texts

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
Batch = tuple[Tensor, ...]


class Problem(NamedTuple):
    """A model, its loss and its data.

    Attributes:
        model: the model with new initial parameters.
        loss: a function of the model and a batch, which returns the 0-dim loss.
        train, valid: tensors with one entry per example.
        batch_size: batch size of training.
        steps: number of training steps.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    train: Batch
    valid: Batch
    batch_size: int
    steps: int


class Ends(NamedTuple):
    """Final training loss, final and lowest validation loss."""

    train: float
    valid: float
    best: float


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def classified(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0][:, :-1]).flatten(0, 1), batch[0][:, 1:].flatten())


def split(count: int, *tensors: Tensor) -> tuple[Batch, Batch]:
    return tuple(t[:count] for t in tensors), tuple(t[count:] for t in tensors)


class Residual(nn.Module):
    """A residual block, x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def series(draws: torch.Generator, length: int, noise: float) -> Tensor:
    """The sum of two seasons, a trend and autoregressive noise, shape ``(length,)``."""
    t = torch.arange(length).float()
    clean = torch.sin(t * 2 * math.pi / 12) + 0.5 * torch.sin(t * 2 * math.pi / 7 + 1) + 0.003 * t
    shocks, level, levels = torch.randn(length, generator=draws) * noise, torch.zeros(()), []
    for shock in shocks:
        level = 0.8 * level + shock
        levels.append(level)
    return clean + torch.stack(levels)


def windows(values: Tensor, past: int, ahead: int) -> tuple[Tensor, Tensor]:
    cut = values.unfold(0, past + ahead, 1)
    return cut[:, :past].contiguous(), cut[:, past:].contiguous()


class Blocks(nn.Module):
    """N-BEATS: each block subtracts its explanation of the past, and the forecasts of all blocks are summed."""

    def __init__(self, past: int, ahead: int, width: int, blocks: int) -> None:
        super().__init__()
        self.past = past
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(past, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, past + ahead)
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        forecast: Tensor | float = 0.0
        for block in self.blocks:
            back, ahead = block(x).split((self.past, block[-1].out_features - self.past), -1)
            x, forecast = x - back, forecast + ahead
        assert isinstance(forecast, Tensor)
        return forecast


def blocks(draws: torch.Generator) -> Problem:
    past, ahead = windows(series(draws, 400, 0.3), 24, 6)
    train, valid = split(250, past, ahead)
    return Problem(Blocks(24, 6, 64, 3), squared, train, valid, 32, 500)


def dense_encoder(draws: torch.Generator) -> Problem:
    """A problem with TiDE, which has residual blocks with dropout and layer norms."""

    def block(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Linear(i, 64), nn.ReLU(), nn.Linear(64, o), nn.Dropout(0.1), nn.LayerNorm(o))

    past, ahead = windows(series(draws, 500, 0.2), 36, 12)
    train, valid = split(300, past, ahead)
    model = nn.Sequential(block(36, 64), Residual(block(64, 64)), Residual(block(64, 64)), nn.Linear(64, 12))
    return Problem(model, squared, train, valid, 32, 400)


class Forecaster(nn.Module):
    """A recurrent network with attention over the past and dropout, which returns three quantiles of future values."""

    def __init__(self, ahead: int, width: int = 24) -> None:
        super().__init__()
        self.ahead = ahead
        self.rnn = nn.LSTM(1, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.norm, self.drop, self.out = nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, 3 * ahead)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x[..., None])
        attended, _ = self.attention(h[:, -1:], h, h, need_weights=False)
        return self.out(self.norm(h[:, -1] + self.drop(attended[:, 0]))).unflatten(-1, (3, self.ahead))


def quantiles(model: nn.Module, batch: Batch) -> Tensor:
    error = batch[1][:, None] - model(batch[0])
    level = torch.tensor([0.1, 0.5, 0.9])[:, None]
    return torch.maximum(level * error, (level - 1) * error).mean()


def forecaster(draws: torch.Generator) -> Problem:
    past, ahead = windows(series(draws, 450, 0.25), 18, 4)
    train, valid = split(280, past, ahead)
    return Problem(Forecaster(4), quantiles, train, valid, 32, 300)


def graphs(draws: torch.Generator, count: int, nodes: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random graphs: features (count, nodes, 8), adjacency with loops, values and classes that depend on both."""
    sizes = torch.randint(nodes // 2, nodes + 1, (count,), generator=draws)
    there = torch.arange(nodes) < sizes[:, None]
    kinds = torch.randint(0, 8, (count, nodes), generator=draws)
    features = F.one_hot(kinds, 8).float() * there[..., None]
    edges = (torch.rand(count, nodes, nodes, generator=draws) < 2.5 / nodes).float().triu(1)
    edges = (edges + edges.mT) * there[:, None] * there[..., None]
    charge = torch.randn(8, generator=draws)[kinds] * there
    energy = charge.sum(1) + torch.einsum("gi,gij,gj->g", charge, edges, charge) / 2
    energy = (energy - energy.mean()) / energy.std()
    noisy = energy + 0.3 * torch.randn(count, generator=draws)
    cuts = torch.quantile(energy, torch.linspace(0, 1, classes + 1)[1:-1])
    return features, edges, noisy[:, None], torch.bucketize(noisy, cuts)


class GraphNetwork(nn.Module):
    """A network that sums messages over neighbours, and then sums nodes to one vector per graph."""

    def __init__(self, outputs: int, width: int = 32, layers: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        there, h = x.sum(-1, keepdim=True), F.relu(self.first(x))
        for layer in self.layers:
            h = F.relu(layer(torch.cat([h, edges @ h], -1)))
        return self.out((h * there).sum(1))


def molecules(draws: torch.Generator) -> Problem:
    x, edges, value, _ = graphs(draws, 600, 12, 2)
    train, valid = split(300, x, edges, value)
    return Problem(GraphNetwork(1), lambda m, b: F.mse_loss(m(b[0], b[1]), b[2]), train, valid, 32, 400)


def graph_classes(draws: torch.Generator) -> Problem:
    x, edges, _, label = graphs(draws, 500, 16, 3)
    train, valid = split(200, x, edges, label)
    model = GraphNetwork(3, dropout=0.5)
    return Problem(model, lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]), train, valid, 32, 300)


class NodeNetwork(nn.Module):
    """Two graph convolutions with dropout on the full batch; features and normalised adjacency are constants."""

    def __init__(self, x: Tensor, edges: Tensor, classes: int, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("edges", edges)
        self.first, self.second = nn.Linear(x.shape[1], width), nn.Linear(width, classes)

    def forward(self, nodes: Tensor) -> Tensor:
        h = F.relu(self.edges @ self.first(F.dropout(self.x, 0.5, self.training)))
        return (self.edges @ self.second(F.dropout(h, 0.5, self.training)))[nodes]


def citation(draws: torch.Generator) -> Problem:
    """Classification of the nodes of one graph, with 100 labelled nodes for 5 classes."""
    classes, each, words = 5, 80, 200
    label = torch.arange(classes).repeat_interleave(each)
    chance = torch.where(label[:, None] == label, 0.03, 0.006)
    edges = (torch.rand(len(label), len(label), generator=draws) < chance).float().triu(1)
    edges = edges + edges.mT + torch.eye(len(label))
    degree = edges.sum(1).rsqrt()
    topics = torch.rand(classes, words, generator=draws) ** 6 * 0.15
    x = (torch.rand(len(label), words, generator=draws) < topics[label]).float()
    x = x / x.sum(1, keepdim=True).clamp(min=1)
    order = torch.randperm(len(label), generator=draws)
    train, valid = split(100, order, label[order])
    model = NodeNetwork(x, edges * degree * degree[:, None], classes)
    return Problem(model, classified, train, valid, 100, 200)


class Transformer(nn.Module):
    """A transformer of torch layers with learned positions; it is causal unless ``causal`` is False."""

    def __init__(self, vocabulary: int, length: int, *, norm_first: bool, dropout: float, causal: bool = True) -> None:
        super().__init__()
        width = 48
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout, "gelu", batch_first=True, norm_first=norm_first
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out, self.causal, self.drop = nn.Linear(width, vocabulary), causal, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        h = self.drop(self.tokens(x) + self.positions(torch.arange(length)))
        return self.out(self.layers(h, mask=mask, is_causal=self.causal))


def words(draws: torch.Generator) -> Problem:
    """A transformer with dropout on the words of a short text, with a large vocabulary."""
    source = resolve_texts(None)[3]
    text = "".join(source.alphabet[i] for i in source.tokens[:120_000].tolist())
    tokens = [w for line in text.split("\n") for w in [*line.split(), "\n"]]
    counts: dict[str, int] = {}
    for w in tokens:
        counts[w] = counts.get(w, 0) + 1
    numbers = {w: i + 1 for i, w in enumerate(sorted(counts, key=lambda w: (-counts[w], w))[:799])}
    rows = torch.tensor([numbers.get(w, 0) for w in tokens])
    rows = rows[: len(rows) // 25 * 25].view(-1, 25)
    rows = rows[torch.randperm(len(rows), generator=draws)]
    train, valid = split(len(rows) * 3 // 4, rows)
    return Problem(Transformer(800, 24, norm_first=True, dropout=0.2), next_token, train, valid, 16, 400)


def masked(model: nn.Module, batch: Batch) -> Tensor:
    """The loss on hidden characters; each training batch draws new positions, and validation has fixed positions."""
    (x,) = batch
    if model.training:
        hidden = torch.rand(x.shape) < 0.15
    else:
        hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(7)) < 0.15
    return F.cross_entropy(model(x.masked_fill(hidden, 0))[hidden], x[hidden])


def post_norm(draws: torch.Generator) -> Problem:
    """A small BERT with layer norms after the residual sums, on masked characters."""
    source = resolve_texts(None)[5]
    rows = source.tokens[:64_000].long().clamp(max=62).add(1).view(-1, 32)
    rows = rows[torch.randperm(len(rows), generator=draws)]
    train, valid = split(1600, rows)
    model = Transformer(64, 32, norm_first=False, dropout=0.1, causal=False)
    return Problem(model, masked, train, valid, 16, 500)


class CountVAE(nn.Module):
    """A variational autoencoder of counts, such as gene expression, with batch norm, dropout and Poisson rates."""

    def __init__(self, genes: int, latent: int = 6, width: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(genes, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, genes)
        )

    def forward(self, counts: Tensor) -> Tensor:
        mean, log_variance = self.encoder(torch.log1p(counts)).chunk(2, -1)
        noise = torch.randn_like(mean) if self.training else 0.0
        rates = self.decoder(mean + noise * (0.5 * log_variance).exp())
        total = counts.sum(-1, keepdim=True)
        log_rates = F.log_softmax(rates, -1) + total.log()
        fit = F.poisson_nll_loss(log_rates, counts, full=True, reduction="none").sum(-1)
        prior = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1)
        return (fit + prior).mean() / counts.shape[-1]


def gene_counts(draws: torch.Generator) -> Problem:
    cells, genes = 700, 120
    loadings = torch.randn(4, genes, generator=draws)
    rates = (torch.randn(cells, 4, generator=draws) @ loadings * 0.5 + torch.randn(genes, generator=draws)).exp()
    counts = torch.poisson(rates, generator=draws)
    train, valid = split(400, counts)
    return Problem(CountVAE(genes), lambda m, b: m(b[0]), train, valid, 64, 400)


class Gated(nn.Module):
    """A tabular network of gated linear units with dropout and batch norm."""

    def __init__(self, inputs: int, outputs: int, width: int = 48) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.body = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.GLU(), nn.Dropout(0.1), nn.Linear(width, 2 * width), nn.GLU()
        )
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.norm(x)))


def noisy_table(draws: torch.Generator) -> Problem:
    x = torch.randn(900, 20, generator=draws)
    hidden = torch.tanh(x[:, :10] @ torch.randn(10, 12, generator=draws) * 0.6)
    scores = hidden @ torch.randn(12, 3, generator=draws) + torch.randn(900, 3, generator=draws)
    train, valid = split(400, x, scores.argmax(1))
    return Problem(Gated(20, 3), classified, train, valid, 32, 400)


def linear_table(draws: torch.Generator) -> Problem:
    """Mostly linear values with much noise; the perceptron has more parameters than the table has rows."""
    x = torch.randn(500, 15, generator=draws)
    y = x @ torch.randn(15, 1, generator=draws) / 15**0.5 + 0.3 * (x[:, :1] * x[:, 1:2])
    y = y + 0.7 * torch.randn(500, 1, generator=draws)
    train, valid = split(200, x, y)
    model = nn.Sequential(nn.Linear(15, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return Problem(model, squared, train, valid, 20, 500)


def few_images(draws: torch.Generator) -> Problem:
    """A convolutional network with batch norm and dropout on 400 noisy synthetic images of 8 classes."""
    images = draw_images(draws, 8, 1000, parts=8, noise=1.2)

    def conv(i: int, o: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

    model = nn.Sequential(
        conv(1, 12, 1), conv(12, 24, 2), conv(24, 32, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(128, 8),
    )  # fmt: skip
    train, valid = split(400, images.inputs, images.targets)
    return Problem(model, classified, train, valid, 32, 300)


def much_text(draws: torch.Generator) -> Problem:
    """A transformer without dropout on so many characters that training makes fewer than two passes."""
    source = resolve_texts(None)[9]
    rows = source.tokens[:250_000].long().clamp(max=63)
    rows = rows[: len(rows) // 33 * 33].view(-1, 33)
    rows = rows[torch.randperm(len(rows), generator=draws)]
    train, valid = split(len(rows) - 500, rows)
    return Problem(Transformer(64, 32, norm_first=True, dropout=0.0), next_token, train, valid, 16, 500)


def much_table(draws: torch.Generator) -> Problem:
    """A table of many rows with little noise."""
    x = torch.randn(9000, 12, generator=draws)
    y = torch.tanh(torch.tanh(x @ torch.randn(12, 16, generator=draws)) @ torch.randn(16, 2, generator=draws))
    y = y + 0.05 * torch.randn(9000, 2, generator=draws)
    train, valid = split(8000, x, y)
    model = nn.Sequential(nn.Linear(12, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))
    return Problem(model, squared, train, valid, 64, 600)


PROBLEMS: dict[str, Callable[[torch.Generator], Problem]] = {
    build.__name__: build
    for build in (
        blocks, dense_encoder, forecaster, molecules, graph_classes, citation, words, post_norm, gene_counts,
        noisy_table, linear_table, few_images, much_text, much_table,
    )
}  # fmt: skip


def batches(problem: Problem, draws: torch.Generator) -> Iterator[Batch]:
    """Endless shuffled mini-batches, which use each example at most once in a pass."""
    count, size = len(problem.train[0]), problem.batch_size
    while True:
        order = torch.randperm(count, generator=draws)
        for first in range(0, count - size + 1, size):
            rows = order[first : first + size]
            yield tuple(t[rows] for t in problem.train)


def train(name: str, seed: int, rule: UpdateRule | None, rate: float) -> Ends:
    """Make one run: with ``rule`` and steps multiplied by ``rate``, or with AdamW at this rate with a cosine."""
    torch.manual_seed(seed)
    problem = PROBLEMS[name](torch.Generator().manual_seed(1000 + seed))
    model, scheduler = problem.model, None
    optimizer: torch.optim.Optimizer
    if rule is None:
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, problem.steps)
    else:
        optimizer = LearnedOptimizer(model, rule, total_steps=problem.steps, lr=rate)
    train_batches, losses, held_out = batches(problem, torch.Generator().manual_seed(seed)), [], []
    for step in range(1, problem.steps + 1):
        loss = problem.loss(model, next(train_batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step() if rule is None else optimizer.step(loss)
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
        if step % (problem.steps // 20) == 0:
            model.eval()
            with torch.no_grad():
                held_out.append(float(problem.loss(model, problem.valid)))
            model.train()
            if rule is not None:
                optimizer.validated(held_out[-1])
    last = losses[-max(problem.steps // 20, 1) :]
    return Ends(statistics.fmean(last), held_out[-1], min(held_out))


def middle(runs: list[Ends]) -> Ends:
    return Ends(*(statistics.median(values) for values in zip(*runs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="base")
    parser.add_argument("--change", nargs="*", default=[], help="as for constants.py")
    parser.add_argument("--config", nargs="*", default=[], help="as for constants.py")
    parser.add_argument("--lr", nargs="*", type=float, default=[], help="factors on the steps of the rule")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compared = {arguments.rule: (changed(arguments.rule, ""), 1.0)}
    compared |= {change: (changed(arguments.rule, change), 1.0) for change in arguments.change}
    compared |= {settings: (configured(arguments.rule, settings), 1.0) for settings in arguments.config}
    compared |= {f"lr {lr:g}": (changed(arguments.rule, ""), lr) for lr in arguments.lr}
    compare(compared, arguments.only, arguments.seeds)


def compare(compared: dict[str, tuple[UpdateRule, float]], only: list[str], seeds: int) -> None:
    """Print the table of all problems with a part of ``only`` in their name."""
    ratios: dict[str, list[Ends]] = {name: [] for name in compared}
    for name in PROBLEMS:
        if not any(part in name for part in only):
            continue
        adamw = [middle([train(name, seed, None, rate) for seed in range(seeds)]) for rate in RATES]
        best = Ends(*(min(values) for values in zip(*adamw, strict=True)))
        cells = ["{:.4g} {:.4g} {:.4g}".format(*best)]
        for label, (rule, lr) in compared.items():
            runs = middle([train(name, seed, rule, lr) for seed in range(seeds)])
            ratios[label].append(Ends(*(math.log(ours / theirs) for ours, theirs in zip(runs, best, strict=True))))
            cells.append("{:+.2f} {:+.2f} {:+.2f}".format(*ratios[label][-1]))
        print(f"{name:14s} " + " | ".join(cells), flush=True)
    for label, values in ratios.items():
        means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        good = [sum(v < 0.02 for v in column) for column in zip(*values, strict=True)]
        print(
            f"{label}: mean {means[0]:+.3f} {means[1]:+.3f} {means[2]:+.3f}, at most 2 % above {good} of {len(values)}"
        )


if __name__ == "__main__":
    main()
