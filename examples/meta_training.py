"""Continue the meta-training of the embedded rule during a fit, on models that differ from those of meta-training.

python examples/meta_training.py                         # all models, 5 seeds, a few minutes on one CPU core
python examples/meta_training.py --models siren --seeds 3 --steps 1000
python examples/meta_training.py --models siren scaled --uncalibrated   # the constants of base alone

Each model is trained twice for the same number of steps, on the same batches: with `base` unchanged, and with
OnlineMetaTraining("base"). The script prints, for each model:

- training and validation losses at the end, as medians over seeds;
- the number of seeds on which OnlineMetaTraining ended lower (in validation, if validation is measured);
- the number of seeds on which OnlineMetaTraining handed back the unchanged rule;
- the factor by which it changed the searched constants (weight decay; without calibration, step sizes);
- the time that OnlineMetaTraining added.

With --validation, a fifth of the examples are for validation, and OnlineMetaTraining measures on these examples.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import logging
import math
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial

if __name__ == "__main__":
    print("loading PyTorch and Lightning", file=sys.stderr, flush=True)  # loading takes seconds

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_lopt import LearnedOptimizerAdapter, OnlineMetaTraining, ResidualRule, load_rule
from lightning_lopt.meta.search import Search
from lightning_lopt.progress import Progress

Examples = tuple[Tensor, ...]


class Sine(nn.Module):
    """A layer of a sine network (SIREN; Sitzmann et al. 2020, https://arxiv.org/abs/2006.09661)."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


class CharacterModel(nn.Module):
    def __init__(self, characters: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(x))[0]).transpose(1, 2)


def digits() -> Examples:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def perceptron(widths: list[int], activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def siren() -> tuple[nn.Module, Examples]:
    """A network from coordinates to the grey values of an 80x80 image of a hundred digits."""
    picture = digits()[0][:100].reshape(10, 10, 8, 8).permute(0, 2, 1, 3).reshape(-1, 1)
    axis = torch.linspace(-1, 1, 80)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    net = nn.Sequential(Sine(2, 64, first=True), Sine(64, 64), Sine(64, 64), nn.Linear(64, 1))
    return net, (places, picture)


def scaled() -> tuple[nn.Module, Examples]:
    """Digits whose pixels are in units that differ by up to six decades."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    images, labels = digits()
    return perceptron([64, 64, 64, 10]), (images * 10 ** torch.linspace(-3, 3, 64)[order], labels)


def deep() -> tuple[nn.Module, Examples]:
    """Eight narrow tanh layers on digits."""
    return perceptron([64, *[32] * 8, 10], nn.Tanh), digits()


def gru() -> tuple[nn.Module, Examples]:
    """A recurrent language model of the characters of a source file."""
    text = inspect.getsource(argparse)
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(character) for character in text])
    windows = tokens[: len(tokens) // 33 * 33].reshape(-1, 33)
    return CharacterModel(len(characters)), (windows[:, :-1], windows[:, 1:])


def mlp() -> tuple[nn.Module, Examples]:
    """A perceptron on digits, which is close to the tasks of meta-training, so it can improve little."""
    return perceptron([64, 64, 64, 10]), digits()


def cnn() -> tuple[nn.Module, Examples]:
    """A convolutional network on digits, which is also close to the tasks of meta-training."""
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)]
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    ), digits()


def split(examples: Examples) -> tuple[Examples, Examples]:
    """Four fifths of the examples for training, and a fifth for validation."""
    order = torch.randperm(len(examples[0]), generator=torch.Generator().manual_seed(7))
    fifth = len(order) // 5
    return tuple(part[order[fifth:]] for part in examples), tuple(part[order[:fifth]] for part in examples)


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Examples]], int]] = {  # the integer is the batch size
    "siren": (siren, 256),
    "scaled": (scaled, 32),
    "deep": (deep, 32),
    "gru": (gru, 8),
    "mlp": (mlp, 32),
    "cnn": (cnn, 32),
}


class Batches(Dataset[Examples]):
    """Mini-batches drawn with replacement; the draws of a mini-batch depend on the seed and its index."""

    def __init__(self, examples: Examples, size: int, steps: int, seed: int) -> None:
        self.examples, self.size, self.steps, self.seed = examples, size, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Examples:
        draws = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        chosen = torch.randint(len(self.examples[0]), (self.size,), generator=draws)
        return tuple(part[chosen] for part in self.examples)


class Model(L.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Examples, index: int) -> Tensor:
        outputs = self.net(batch[0])
        return F.cross_entropy(outputs, batch[1]) if batch[1].dtype == torch.int64 else F.mse_loss(outputs, batch[1])

    def validation_step(self, batch: Examples, index: int) -> None:
        pass  # OnlineMetaTraining calls training_step on validation batches

    def configure_optimizers(self) -> None:
        return None  # the callbacks provide the optimizer


def uncalibrated(name: str) -> ResidualRule:
    """A rule with the same constants, which does not calibrate its steps."""
    rule = load_rule(name)
    plain = ResidualRule(**{**rule.config, "calibrated": False})
    plain.load_state_dict({key: value for key, value in rule.state_dict().items() if "calibration" not in key})
    return plain


def train(name: str, seed: int, steps: int, callback: L.Callback, folder: str, validation: bool) -> tuple[float, float]:
    """Final losses on training examples and on validation examples (NaN without validation examples)."""
    torch.manual_seed(seed)
    build, size = MODELS[name]
    net, examples = build()
    examples, held_out = split(examples) if validation else (examples, None)
    module = Model(net)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=1,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )
    data = DataLoader(Batches(examples, size, steps, seed), batch_size=None)
    trainer.fit(module, data, None if held_out is None else DataLoader(Batches(held_out, size, 32, 0), batch_size=None))
    with torch.no_grad():
        train_loss = float(module.training_step(tuple(part[:6400] for part in examples), 0))
        return train_loss, math.nan if held_out is None else float(module.training_step(held_out, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--uncalibrated", action="store_true", help="use the constants of base without calibration")
    parser.add_argument("--validation", action="store_true", help="measure on a fifth of the examples")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|the saved rule is that of the start).*")

    rule = uncalibrated("base") if arguments.uncalibrated else "base"
    print(
        f"Training {', '.join(arguments.models)} for {arguments.steps} steps, with base and with OnlineMetaTraining, "
        f"{arguments.seeds} seeds.",
        flush=True,
    )
    print("          training              validation", flush=True)
    print(
        f"{'model':8} {'base':>9} {'adapted':>9}  {'base':>9} {'adapted':>9}  lower on  handed back factor rounds  time"
    )
    progress = Progress("training", len(arguments.models) * arguments.seeds * 2, "runs")
    for name in arguments.models:
        plain, adapted, factors, shares, rounds, handed_back = [], [], [], [], 0, 0
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                progress.doing(f"{name}, seed {seed}, base")
                search = partial(Search, seed=seed) if arguments.uncalibrated else None
                callback = OnlineMetaTraining(rule, search=search)
                plain.append(
                    train(name, seed, arguments.steps, LearnedOptimizerAdapter(rule), folder, arguments.validation)
                )
                progress.advance()
                progress.doing(f"{name}, seed {seed}, OnlineMetaTraining")
                adapted.append(train(name, seed, arguments.steps, callback, folder, arguments.validation))
                progress.advance()
            if callback.search is not None:
                chosen, start = (torch.cat(list(t.values())) for t in (callback.search.chosen, callback.search.start))
                factors.append(float((chosen - start).mean().exp()))
                shares.append(callback.time_share)
                rounds = callback.search.rounds
                handed_back += not callback.search.improving
        wins = sum(a[arguments.validation] < b[arguments.validation] for a, b in zip(adapted, plain, strict=True))
        medians = [statistics.median(loss[split] for loss in losses) for split in (0, 1) for losses in (plain, adapted)]
        progress.clear()
        print(
            f"{name:8} {medians[0]:9.5f} {medians[1]:9.5f}  {medians[2]:9.5f} {medians[3]:9.5f}  "
            f"{f'{wins} of {arguments.seeds}':8}  {f'{handed_back} of {arguments.seeds}':11} "
            f"{statistics.median(factors):6.2f} {rounds:6} {statistics.median(shares):+6.1%}",
            flush=True,
        )
    progress.close()


if __name__ == "__main__":
    main()
