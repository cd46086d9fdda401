"""Fine-tuning problems for choosing constants: no report is made of them, and the suite `finetune` has other data.

python examples/research/finetuning.py
python examples/research/finetuning.py --only cnn gru --seeds 3 --scratch

`finetune_problems()` gives the problems, for `lightning_lopt.evaluation.runs.run_rules(rules, problem, seeds=2)`; the
metric `"body_moved"` of a measurement says how far the body is from its pretrained values, in units of its norm. The
printed table has, for each problem, final losses on held-out data (median of the seeds): of AdamW at the best of eight
learning rates (warm-up, linear decay, weight decay 0.01), of the same on the head alone, of AdamW at 1e-3, of `base`,
with `--scratch` of AdamW from random initial values; then how far AdamW and `base` moved the body.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from lightning_lopt import load_rule
from lightning_lopt.evaluation.baselines import FINE_TUNING_BASELINES, Baselines
from lightning_lopt.evaluation.measurement import Measurement
from lightning_lopt.evaluation.problem import Problem
from lightning_lopt.evaluation.runs import run_rules
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageViTTask,
    LabelledImages,
    TabularTask,
)
from lightning_lopt.tasks.finetune import FineTuneTask, Pretraining
from lightning_lopt.tasks.finetune.synthetic_images import draw_images, few_of_each, of_classes
from lightning_lopt.tasks.finetune.teachers import related_table, teacher_table
from lightning_lopt.tasks.tabular import with_noise
from lightning_lopt.tasks.text import resolve_texts

VOCABULARY = 48
OLD, NEW = 20, 8  # classes of images
SEED = 1234  # of data, pretrained models and splits


def finetune_problems() -> list[Problem]:
    """Six small problems of 150 to 300 steps, each with few examples, a pretrained body and a fresh head."""
    return [cnn_on_new_classes(), vit_on_new_classes(), perceptron_on_new_images(), *texts(), related_values()]


def cnn_on_new_classes() -> Problem:
    """A convolutional network pretrained on 20 classes of images, on 8 other ones with 4 images each."""
    images = _images("cnn")
    options = {"channels": (12, 24), "activation": "gelu", "readout": "flatten"}
    body = ImageCNNTask(*_old(images), **options)
    task = ImageCNNTask(*_few(images, 4), **options, batch_size=16)
    return _problem("choose-cnn-classes", FineTuneTask(task, Pretraining(body, 400, 5e-3, SEED)), 150)


def vit_on_new_classes() -> Problem:
    """A vision transformer on 8 new classes with 6 images each; its patches and its first block stay frozen."""
    images = _images("vit")
    options = {"grid": 4, "width": 24, "depth": 2}
    body = ImageViTTask(*_old(images), **options)
    task = ImageViTTask(*_few(images, 6), **options, batch_size=12)
    frozen = [name for name in task.roles if name.startswith(("patch", "position", "blocks.0"))]
    made = FineTuneTask(task, Pretraining(body, 600, 5e-3, SEED), frozen=frozen)
    return _problem("choose-vit-half-frozen", made, 150)


def perceptron_on_new_images() -> Problem:
    """A perceptron pretrained on 20 classes; the new images have noise and another contrast, and 5 classes of four."""
    images = _images("perceptron")
    old = of_classes(images, torch.arange(OLD))
    noise = torch.randn(old.inputs.shape, generator=generator(SEED, "perceptron", "noise"))
    other = replace(old, inputs=0.7 * old.inputs + 0.5 * noise + 0.2, targets=old.targets // 4, classes=OLD // 4)
    body = ImageMLPTask(*_old(images), (64, 48), "gelu")
    task = ImageMLPTask(*few_of_each(other, 12, generator(SEED, "few")), (64, 48), "gelu", batch_size=12)
    return _problem("choose-mlp-images", FineTuneTask(task, Pretraining(body, 800, 3e-3, SEED)), 150)


def texts() -> list[Problem]:
    """A transformer and a recurrent network pretrained on one source of Python's library, on a little of another."""
    old, new = resolve_texts(None)[7], resolve_texts(None)[12]
    alphabet = old.alphabet[:VOCABULARY]
    old_tokens, tokens = old.in_alphabet(alphabet), new.in_alphabet(alphabet)
    before, after = (old_tokens[:-4000], old_tokens[-4000:]), (tokens[:2500], tokens[-6000:])
    wide = {"width": 24, "depth": 2, "length": 20}
    transformer = FineTuneTask(
        CharTransformerTask(*after, VOCABULARY, **wide, batch_size=8),
        Pretraining(CharTransformerTask(*before, VOCABULARY, **wide, batch_size=16), 800, 5e-3, SEED),
    )
    options = {"width": 32, "length": 16}
    gru = FineTuneTask(
        CharRNNTask(*after, VOCABULARY, **options, batch_size=8),
        Pretraining(CharRNNTask(*before, VOCABULARY, **options, batch_size=16), 800, 1e-2, SEED),
    )
    return [_problem("choose-text-transformer", transformer, 150), _problem("choose-text-gru", gru, 150)]


def related_values() -> Problem:
    """A perceptron pretrained on values of a random network, on others that need the same hidden layers."""
    widths, draws = (32, 32), generator(SEED, "values")
    teacher, old = teacher_table(draws, (12, *widths, 12), "tanh", 6000)
    train, valid = related_table(teacher, draws, 3, "tanh", 580).cut(500)
    body = TabularTask(*old.cut(500), widths, "squared", activation="tanh", batch_size=64)
    task = TabularTask(with_noise(train, 0.1, draws), valid, widths, "squared", activation="tanh", batch_size=16)
    return _problem("choose-values", FineTuneTask(task, Pretraining(body, 1500, 1e-2, SEED)), 300)


def _images(name: str) -> LabelledImages:
    return draw_images(generator(SEED, name), OLD + NEW, 6000, parts=8, noise=0.3)


def _old(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """What to pretrain on: many images of the first classes, and held-out ones."""
    return of_classes(images, torch.arange(OLD)).split(0.1, generator(SEED, "old"))


def _few(images: LabelledImages, shots: int) -> tuple[LabelledImages, LabelledImages]:
    """What to fine-tune on: few images of the other classes, and held-out ones."""
    return few_of_each(of_classes(images, torch.arange(OLD, OLD + NEW)), shots, generator(SEED, "few"))


def _problem(name: str, task: FineTuneTask, horizon: int) -> Problem:
    return Problem(name, task, horizon, "", "choosing")


COLUMNS = ("problem", "steps", "AdamW", "its rate", "head alone", "AdamW 1e-3", "base", "moved: AdamW", "moved: base")


def row(problem: Problem, seeds: int) -> dict[str, Measurement]:
    """Measurements of the three baselines and of `base`."""
    baselines = Baselines(seeds=seeds, shipped=False)
    runs = {name: baselines(problem, name) for name in FINE_TUNING_BASELINES}
    return runs | {"base": run_rules([load_rule("base")], problem, seeds=seeds)[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--suite", action="store_true", help="the problems of the suite `finetune` instead: no choosing"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scratch", action="store_true", help="also AdamW from random initial values")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = (*COLUMNS, *(("from scratch",) if arguments.scratch else ()), "CPU seconds of base")
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    for problem in make_suite("finetune") if arguments.suite else finetune_problems():
        if not any(part in problem.name for part in arguments.only):
            continue
        runs = row(problem, arguments.seeds)
        cells = [problem.name, str(problem.horizon), valid(runs["adamw_warmup"])]
        cells += [f"{runs['adamw_warmup'].learning_rate:g}", valid(runs["adamw_head"]), valid(runs["adamw_default"])]
        cells += [valid(runs["base"]), moved(runs["adamw_warmup"]), moved(runs["base"])]
        if arguments.scratch:
            scratch = Problem(problem.name, problem.task.task, problem.horizon)
            cells.append(valid(Baselines(seeds=arguments.seeds, shipped=False)(scratch, "adamw_warmup")))
        begin = time.process_time()
        run_rules([load_rule("base")], problem, seeds=arguments.seeds)
        print("| " + " | ".join([*cells, f"{time.process_time() - begin:.1f}"]) + " |", flush=True)


def valid(run: Measurement) -> str:
    """Median final loss on held-out data."""
    return f"{float(run.final_valid.median()):.3f}"


def moved(run: Measurement) -> str:
    """Median movement of the body at the end, in units of its norm at the start."""
    return f"{float(run.metrics['body_moved'][-1].median()):.2f}"


if __name__ == "__main__":
    main()
