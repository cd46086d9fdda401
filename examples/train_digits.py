"""Train a network on handwritten digits three ways: a learned optimizer, AdamW at its default, and AdamW tuned.

python examples/train_digits.py                    # scikit-learn's digits, about a minute on two cores
python examples/train_digits.py --model mlp        # a perceptron
python examples/train_digits.py --data DIR         # a folder with MNIST's IDX files, or an npz file of images
python examples/train_digits.py --seeds 5 --wandb  # medians of 5 seeds, curves to Weights & Biases (offline)

The script prints a table and draws two panels, the training loss against steps and against seconds. Seconds are those
of whole training steps on this machine, with the work of Lightning.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if __name__ == "__main__":
    print("loading PyTorch and Lightning", file=sys.stderr, flush=True)  # loading takes seconds

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter
from lightning_lopt.extras import empty_figure, how_to_install
from lightning_lopt.progress import Progress
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import load_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class DigitClassifier(L.LightningModule):
    """An ordinary LightningModule; only ``configure_optimizers`` depends on the optimizer."""

    def __init__(
        self, shape: tuple[int, int, int], classes: int, model: str, optimizer: str, lr: float | None = None
    ) -> None:
        super().__init__()
        self.optimizer, self.lr = optimizer, lr
        if model == "cnn":
            self.net = nn.Sequential(
                nn.Conv2d(shape[0], 16, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(128, classes),
            )
        else:
            self.net = nn.Sequential(
                nn.Flatten(),
                nn.Linear(math.prod(shape), 64),
                nn.ReLU(),
                nn.Linear(64, 64),
                nn.ReLU(),
                nn.Linear(64, classes),
            )
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.train_losses: list[Tensor] = []
        self.times: list[float] = []  # seconds from the start of the fit to the end of each step

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.net(inputs), targets)
        self.train_losses.append(loss.detach())
        self.log("train_loss", loss)
        return loss

    def on_train_start(self) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, outputs: object, batch: list[Tensor], batch_idx: int) -> None:
        self.times.append(time.perf_counter() - self.began)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        logits = self.net(inputs)
        self.accuracy(logits, targets)
        self.log("valid_loss", F.cross_entropy(logits, targets))
        self.log("valid_accuracy", self.accuracy)

    def configure_optimizers(self):
        if self.optimizer == "learned":
            return LearnedOptimizer(self, self.rule)
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr or 1e-3)
        if self.lr is None:
            return optimizer
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


@dataclass
class Result:
    """The results of one optimizer, with one entry per seed."""

    name: str
    final: list[float] = field(default_factory=list)  # loss on the whole training split after the last step
    valid: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)  # seconds from the start of a fit to the end of each step


class Steps(L.Callback):
    """Advances the progress bar at each training step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_train_batch_end(self, *_: object) -> None:
        self.progress.advance()


def fit(result: Result, data, arguments, optimizer: str, lr: float | None, seed: int, progress: Progress) -> None:
    progress.doing(f"{result.name}, seed {seed}")
    L.seed_everything(seed, verbose=False)
    train, valid = data
    module = DigitClassifier(train.shape, train.classes, arguments.model, optimizer, lr)
    module.rule = arguments.rule
    loader = DataLoader(TensorDataset(train.inputs, train.targets), batch_size=64, shuffle=True, drop_last=True)
    held_out = DataLoader(TensorDataset(valid.inputs, valid.targets), batch_size=len(valid))
    logger = False
    if arguments.wandb:
        from lightning.pytorch.loggers import WandbLogger

        logger = WandbLogger(project="lightning_lopt", name=f"{result.name} seed {seed}", reinit=True)
    trainer = L.Trainer(
        max_steps=arguments.steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        val_check_interval=arguments.steps,
        callbacks=[Steps(progress), *([LearnedOptimizerAdapter()] if optimizer == "learned" else [])],
    )
    trainer.fit(module, loader, held_out)
    result.seconds.append(module.times[-1])
    result.times.append(module.times)
    module.eval()
    with torch.no_grad():
        result.final.append(float(F.cross_entropy(module.net(train.inputs), train.targets)))
    result.valid.append(float(trainer.callback_metrics["valid_loss"]))
    result.accuracy.append(float(trainer.callback_metrics["valid_accuracy"]))
    result.curves.append([float(loss) for loss in module.train_losses])
    if arguments.wandb:
        import wandb

        wandb.finish()


def smooth(curve: list[float], window: int = 20) -> list[float]:
    """Mean over the last ``window`` steps."""
    return [statistics.fmean(curve[max(0, i - window + 1) : i + 1]) for i in range(len(curve))]


def median_curve(result: Result) -> list[float]:
    return [statistics.median(values) for values in zip(*map(smooth, result.curves), strict=True)]


def median_times(result: Result) -> list[float]:
    return [statistics.median(values) for values in zip(*result.times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="folder of IDX files or npz, or an npz file")
    parser.add_argument("--model", choices=("cnn", "mlp"), default="cnn")
    parser.add_argument("--rule", default="base", help="embedded weights, or a folder that examples/meta_train.py made")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--picture", default="train_digits.png")
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases, offline unless WANDB_MODE is set"
    )
    arguments = parser.parse_args()
    figure = empty_figure(9.5, 3.8)  # a missing matplotlib is reported before the training
    if arguments.wandb:
        os.environ.setdefault("WANDB_MODE", "offline")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = load_images(arguments.data).standardised().split(0.2, generator(0, "split"))

    learned, default = Result("LearnedOptimizer, nothing tuned"), Result("AdamW, PyTorch's default")
    sweep = [Result(f"AdamW, best of 7 rates + cosine (lr={lr:g})") for lr in LEARNING_RATES]
    fits = arguments.seeds * (2 + len(sweep))
    print(
        f"Training {fits} networks for {arguments.steps} steps each on {len(data[0]):,} images of {arguments.data}: "
        f"with {arguments.rule}, with AdamW at its default, and with AdamW at {len(sweep)} learning rates.",
        flush=True,
    )
    with Progress("training", fits * arguments.steps) as progress:
        for seed in range(arguments.seeds):
            fit(learned, data, arguments, "learned", None, seed, progress)
            fit(default, data, arguments, "adamw", None, seed, progress)
            for lr, result in zip(LEARNING_RATES, sweep, strict=True):
                fit(result, data, arguments, "adamw", lr, seed, progress)
    tuned = min(sweep, key=lambda result: statistics.median(result.final))

    target = median_curve(tuned)[-1]
    print(f"\n{'optimizer':<48}{'train loss':>11}{'valid loss':>11}{'accuracy':>9}{'steps to tuned':>15}{'seconds':>9}")
    for result in (learned, default, tuned):
        reached = next((str(i + 1) for i, loss in enumerate(median_curve(result)) if loss <= target), "never")
        middle = statistics.median
        print(
            f"{result.name:<48}{middle(result.final):>11.4f}{middle(result.valid):>11.4f}"
            f"{middle(result.accuracy):>9.3f}{reached:>15}{middle(result.seconds):>9.1f}"
        )
    kind = {"cnn": "convolutional network", "mlp": "perceptron"}[arguments.model]
    runs = "one seed" if arguments.seeds == 1 else f"medians of {arguments.seeds} seeds"
    title = f"A {kind} on {os.path.basename(arguments.data)}, {runs}"
    plot(figure, (learned, default, tuned), arguments.picture, title)


def plot(figure: Figure, results: tuple[Result, ...], path: str, title: str) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for result in results:
        curve = median_curve(result)
        panels[0].semilogy(range(1, len(curve) + 1), curve)
        panels[1].semilogy(median_times(result), curve, label=result.name)
    panels[0].set(xlabel="steps", ylabel="training loss (mean of 20 steps)")
    panels[1].set(xlabel="seconds")
    panels[1].legend(fontsize="small", loc="upper right")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    print(f"curves: {path}")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"train_digits.py: {error} (all packages of the examples: {how_to_install('examples')})")
