"""Fine-tuning problems for choosing constants: no report is made of them, and the suite `finetune` has other data.

python examples/research/finetuning.py
python examples/research/finetuning.py --only cnn gru --seeds 3

`finetune_problems()` gives the problems, for `lightning_lopt.evaluation.runs.run_rules(rules, problem, seeds=2)`. The
printed table has, for each problem, final losses on held-out data (median of the seeds) of AdamW at the best of eight
learning rates (warm-up, linear decay, weight decay 0.01), of AdamW that trains the head alone, of AdamW that trains the
same network from random initial values, and of `base`; then how far AdamW and `base` moved the body, in units of its
norm, and the seconds of the run of `base`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.runs import run_rules
from lightning_lopt.rules import AdamRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    ImageAutoencoderTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageViTTask,
    LabelledImages,
    TabularTask,
)
from lightning_lopt.tasks.finetune import FineTuneTask, Pretraining
from lightning_lopt.tasks.finetune.synthetic_images import draw_images, few_of_each, of_classes
from lightning_lopt.tasks.finetune.teachers import draw_related_tables
from lightning_lopt.tasks.text import resolve_texts

VOCABULARY = 48
SEED = 1234  # of data, pretrained models and splits
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def finetune_problems() -> list[Problem]:
    """Six small problems of 100 to 400 steps, each with few examples, a pretrained body and a fresh head."""
    return [cnn_on_new_classes(), vit_on_new_classes(), classifier_of_autoencoder(), *texts(), related_values()]


def cnn_on_new_classes() -> Problem:
    """A convolutional network pretrained on 16 classes of images, on 8 other ones with 4 images each."""
    old, train, valid = _images("cnn", 16, 8, 4)
    options = {"channels": (12, 24), "activation": "gelu", "readout": "flatten"}
    body = ImageCNNTask(*old.split(0.1, generator(SEED, "cnn")), **options, batch_size=64)
    task = ImageCNNTask(train, valid, **options, batch_size=16)
    return _problem("choose-cnn-classes", FineTuneTask(task, Pretraining(body, 500, seed=SEED)), 200)


def vit_on_new_classes() -> Problem:
    """A vision transformer whose first block and patches stay frozen, on 6 new classes with 6 images each."""
    old, train, valid = _images("vit", 14, 6, 6)
    options = {"grid": 4, "width": 24, "depth": 2}
    body = ImageViTTask(*old.split(0.1, generator(SEED, "vit")), **options, batch_size=64)
    task = ImageViTTask(train, valid, **options, batch_size=12)
    frozen = [name for name in task.roles if name.startswith(("patch", "position", "blocks.0"))]
    made = FineTuneTask(task, Pretraining(body, 600, seed=SEED), frozen=frozen)
    return _problem("choose-vit-half-frozen", made, 150)


def classifier_of_autoencoder() -> Problem:
    """A perceptron whose hidden layers were the encoder of a denoising autoencoder, on 10 classes of 3 images each."""
    old, train, valid = _images("autoencoder", 10, 10, 3)
    body = ImageAutoencoderTask(
        *old.split(0.1, generator(SEED, "autoencoder")), (48, 32), 16, 1.0, activation="gelu", batch_size=64
    )
    task = ImageMLPTask(train, valid, (48, 32), "gelu", batch_size=10)
    names = {f"layers.{layer}.{part}": f"encoder.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    made = FineTuneTask(task, Pretraining(body, 800, seed=SEED), body=names)
    return _problem("choose-autoencoder-classes", made, 150)


def texts() -> list[Problem]:
    """A transformer and a recurrent network pretrained on one source of Python's library, on a little of another."""
    old, new = resolve_texts(None)[7], resolve_texts(None)[12]
    alphabet = old.alphabet[:VOCABULARY]
    old_tokens, tokens = old.in_alphabet(alphabet), new.in_alphabet(alphabet)
    before, after = (old_tokens[:-4000], old_tokens[-4000:]), (tokens[:2500], tokens[-6000:])
    wide = {"width": 32, "depth": 2, "length": 24}
    transformer = FineTuneTask(
        CharTransformerTask(*after, VOCABULARY, **wide, batch_size=8),
        Pretraining(CharTransformerTask(*before, VOCABULARY, **wide, batch_size=16), 800, 5e-3, SEED),
    )
    options = {"width": 40, "length": 20}
    gru = FineTuneTask(
        CharRNNTask(*after, VOCABULARY, **options, batch_size=8),
        Pretraining(CharRNNTask(*before, VOCABULARY, **options, batch_size=16), 800, 1e-2, SEED),
    )
    return [_problem("choose-text-transformer", transformer, 200), _problem("choose-text-gru", gru, 200)]


def related_values() -> Problem:
    """A perceptron pretrained on values of a random network, on others that need the same hidden layers."""
    sizes = (12, 32, 32)
    old, new = draw_related_tables(generator(SEED, "values"), (*sizes, 12), 3, "tanh", (6000, 580), 0.1)
    body = TabularTask(*old.cut(500), sizes[1:], "squared", activation="tanh", batch_size=64)
    task = TabularTask(*new.cut(500), sizes[1:], "squared", activation="tanh", batch_size=16)
    return _problem("choose-values", FineTuneTask(task, Pretraining(body, 1500, 1e-2, SEED)), 300)


def _images(name: str, old: int, new: int, shots: int) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
    """Images for pretraining, then few images of other classes, and held-out images of these."""
    images = draw_images(generator(SEED, name), old + new, 5000, noise=0.9)
    few = few_of_each(of_classes(images, torch.arange(old, old + new)), shots, generator(SEED, name, "few"))
    return (of_classes(images, torch.arange(old)), *few)


def _problem(name: str, task: FineTuneTask, horizon: int) -> Problem:
    return Problem(name, task, horizon, "", "choosing")


class WarmUpAdamRule(AdamRule):
    """AdamW whose learning rate rises over a tenth of the run and then falls linearly."""

    reads_horizon = True

    def step(self, inputs, controls, at):
        update, state = super().step(inputs, controls, at)
        done, warm_up = at.scheduled_step + 1, 0.1 * at.total_steps
        left = (at.total_steps - at.scheduled_step) / (at.total_steps - warm_up)
        return update * torch.minimum(done / warm_up, left).clamp(max=1.0), state


def best_of(problem: Problem, task, seeds: int) -> tuple[Measurement, float]:
    """AdamW at the learning rate with the lowest median loss on held-out data, and that rate."""
    runs = run_rules([WarmUpAdamRule(rate, weight_decay=0.01) for rate in RATES], task, horizon=problem.horizon, seeds=seeds)
    best = min(range(len(RATES)), key=lambda i: float(runs[i].final_valid.nan_to_num(torch.inf).median()))
    return runs[best], RATES[best]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base = load_rule("base")
    print("| problem | steps | AdamW | its rate | head alone | from scratch | base | moved: AdamW | moved: base | seconds |")
    for problem in finetune_problems():
        if not any(part in problem.name for part in parsed.only):
            continue
        task = problem.task
        start = time.perf_counter()
        task.start
        print("pretrain", time.perf_counter() - start, task.pretraining.task.metrics(task.pretraining.params(), task.pretraining.task.full_batch("valid")),
            task.pretraining.task.loss(task.pretraining.params(), task.pretraining.task.full_batch("valid")), task.pretraining.task.loss_scale)
        adamw, rate = best_of(problem, task, parsed.seeds)
        head, hr = best_of(problem, task.head_alone(), parsed.seeds)
        scratch, sr = best_of(problem, task.task, parsed.seeds)
        start = time.perf_counter()
        (learned,) = run_rules([base], problem, seeds=parsed.seeds)
        seconds = time.perf_counter() - start
        losses = [f"{float(run.final_valid.median()):.3f}" for run in (adamw, head, scratch, learned)]
        moved = [f"{float(run.metrics['body_moved'][-1].median()):.2f}" for run in (adamw, learned)]
        first = f"{float(learned.metrics['body_moved'][0].median()):.2f}"
        print("|", problem.name, problem.horizon, losses[0], rate, losses[1], hr, losses[2], sr, losses[3], *moved, first, f"{seconds:.1f}", flush=True)


if __name__ == "__main__":
    main()
