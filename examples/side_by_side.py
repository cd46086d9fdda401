"""Train one module with a learned optimizer, Adam at its default, and tuned AdamW; two examples share this code."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_lopt import Assessment, LearnedOptimizerAdapter, assess
from lightning_lopt.extras import empty_figure
from lightning_lopt.progress import Progress

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TIE = 0.02  # losses that differ by less than this share are equal


class Module(L.LightningModule):
    """A network and a loss; ``lr`` is the rate of AdamW with a cosine schedule, or ``None`` for Adam at its default."""

    lr: float | None = None

    def loss(self, batch: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def metrics(self, batch: list[Tensor]) -> dict[str, float]:
        return {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self):
        if self.lr is None:
            return torch.optim.Adam(self.parameters())
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Data(L.LightningDataModule):
    """Tensors in memory: training in shuffled batches, validation in batches of the same size."""

    def __init__(self, train: tuple[Tensor, ...], valid: tuple[Tensor, ...], batch_size: int) -> None:
        super().__init__()
        self.train, self.valid, self.batch_size = train, valid, batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.train), self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.valid), self.batch_size)


@dataclass
class Result:
    """The results of one optimizer, with one entry per seed."""

    name: str
    train: list[float] = field(default_factory=list)  # loss on the whole split after the last step
    valid: list[float] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    curves: list[list[float]] = field(default_factory=list)  # loss of each mini-batch


class _Curve(L.Callback):
    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].detach())


def parser_for(description: str, steps: int, picture: str) -> argparse.ArgumentParser:
    """A parser with the options of both examples."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="base", help="embedded weights, or a folder that examples/meta_train.py made")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="20s", help="budget of the prediction: 20s, 10%% of the run, or 400steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", default=picture)
    return parser


def predict_and_race(build: Callable[[], Module], data: Data, arguments: argparse.Namespace, title: str) -> None:
    """Print the prediction, train, print the results, and draw them."""
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(f"{title}: short pilots predict, then {arguments.seeds * (2 + len(RATES))} runs show what happens.")
    print("== predicted\n", flush=True)
    with Progress("assess") as progress:
        steps, budget = arguments.steps, arguments.budget
        assessment = assess(build, data, arguments.rule, total_steps=steps, budget=budget, tell=progress.doing)
    print(f"{assessment}\n\n== what happened\n", flush=True)
    learned, plain = Result("LearnedOptimizer, nothing tuned"), Result("Adam, PyTorch's default")
    sweep = [Result(f"AdamW, best of {len(RATES)} rates + cosine (lr={lr:g})") for lr in RATES]
    with Progress("training", arguments.seeds * (2 + len(RATES)), "runs") as progress:
        for seed in range(arguments.seeds):
            runs = [(learned, {"rule": arguments.rule}), (plain, {})]
            runs += [(result, {"lr": lr}) for lr, result in zip(RATES, sweep, strict=True)]
            for result, optimizer in runs:
                progress.doing(f"{result.name}, seed {seed}")
                fit(result, build, data, arguments, seed, **optimizer)
                progress.advance()
    tuned = min(sweep, key=lambda result: statistics.median(_finite(result.valid)))
    results = (learned, plain, tuned)
    print(table(results))
    print("\n" + comparison(assessment, learned, tuned))
    plot(results, arguments.picture, title)


def fit(
    result: Result,
    build: Callable[[], Module],
    data: Data,
    arguments: argparse.Namespace,
    seed: int,
    *,
    rule: str | None = None,
    lr: float | None = None,
) -> None:
    """Train one module with the given seed, and append its results to ``result``."""
    L.seed_everything(seed, verbose=False)
    module, curve = build(), _Curve()
    module.lr = lr
    trainer = L.Trainer(
        max_steps=arguments.steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[curve, *([LearnedOptimizerAdapter(rule)] if rule is not None else [])],
    )
    began = time.perf_counter()
    trainer.fit(module, data)
    result.seconds.append(time.perf_counter() - began)
    module.eval()
    with torch.no_grad():
        result.train.append(float(module.loss(list(data.train))))
        result.valid.append(float(module.loss(list(data.valid))))
        result.metrics.append(module.metrics(list(data.valid)))
    result.curves.append([float(loss) for loss in curve.losses])


def table(results: tuple[Result, ...]) -> str:
    """Medians over seeds, one line for each optimizer."""
    names = list(results[0].metrics[0])
    heads = "".join(f"{name:>10}" for name in names)
    lines = [f"{'optimizer':<48}{'train loss':>12}{'valid loss':>12}{heads}{'seconds':>9}"]
    middle = statistics.median
    for result in results:
        cells = "".join(f"{middle(metrics[name] for metrics in result.metrics):>10.3f}" for name in names)
        lines.append(
            f"{result.name:<48}{middle(_finite(result.train)):>12.5g}{middle(_finite(result.valid)):>12.5g}{cells}"
            f"{middle(result.seconds):>9.1f}"
        )
    return "\n".join(lines)


def comparison(assessment: Assessment, learned: Result, tuned: Result) -> str:
    """The prediction and the result in two sentences."""
    ratios = [a / b for a, b in zip(_finite(learned.valid), _finite(tuned.valid), strict=True)]
    ratio, train_ratio = statistics.median(ratios), statistics.median(learned.train) / statistics.median(tuned.train)
    outcome = "lost to" if ratio > 1 + TIE else "beat" if ratio < 1 - TIE else "was as good as"
    wins = sum(seed_ratio < 1 for seed_ratio in ratios)
    return (
        f'Predicted: "{assessment.verdict}". What happened: the learned optimizer {outcome} tuned AdamW; its '
        f"validation loss was {ratio:.2f} times AdamW's (median of {len(ratios)} seeds, lower with {wins} of them), "
        f"its training loss {train_ratio:.2f} times."
    )


def _finite(losses: list[float]) -> list[float]:
    """The losses with infinity instead of NaN, so that sorting puts these losses last."""
    return [loss if loss == loss else float("inf") for loss in losses]


def plot(results: tuple[Result, ...], path: str, title: str) -> None:
    """Training curves, and the validation loss of each seed."""
    figure = empty_figure(10, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, result in enumerate(results):
        curves = [smooth(curve) for curve in result.curves]
        middle = [statistics.median(values) for values in zip(*curves, strict=True)]
        left.semilogy(middle, label=result.name, color=f"C{place}")
        right.plot([place] * len(result.valid), result.valid, "o", color=f"C{place}")
    left.set(xlabel="step", ylabel="training loss (mean of 20 steps)", title=title)
    right.set(ylabel="validation loss after the last step", title="one dot for each seed", xlim=(-0.5, 2.5))
    right.set_xticks(range(len(results)), ["learned", "Adam,\ndefault", "AdamW,\ntuned"])
    right.set_ylim(bottom=0)
    left.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


def smooth(curve: list[float], window: int = 20) -> list[float]:
    """Mean over the last ``window`` steps."""
    return [statistics.fmean(curve[max(0, i - window + 1) : i + 1]) for i in range(len(curve))]
