"""Fine-tuning problems for choosing constants; they are in no report, and the suite `finetune` has other data.

python examples/research/finetuning.py
python examples/research/finetuning.py --only cnn gru --seeds 3 --scratch
python examples/research/finetuning.py --data mnist10k.npz cifar10_16x16.npz --change restraint.epoch_power-1

`finetune_problems()` returns the problems, for `run_rules(rules, problem, seeds=2)` of
`lightning_lopt.evaluation.measurement`. The metric `"body_moved"` of a measurement is the distance of the body from its
pretrained values, divided by its norm. For each problem, the printed table has final losses on held-out data (median
of the seeds) of these optimizers: AdamW at the best of eight learning rates (warm-up, linear decay, weight decay 0.01),
the same AdamW on the head only, AdamW at 1e-3, `base`, and with `--scratch` AdamW from random initial values. The table
also has the distances that AdamW and `base` moved the body. `--data` adds problems on sets of images, with few and with
many examples; `--change` and `--config` add rules with other constants and settings, as in `constants.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from constants import changed, configured

from lightning_lopt import load_rule
from lightning_lopt.evaluation.baselines import FINE_TUNING_BASELINES, Baselines
from lightning_lopt.evaluation.measurement import Measurement, Problem, run_rules
from lightning_lopt.evaluation.suites import make_suite
from lightning_lopt.evaluation.suites.small import fine_tuning
from lightning_lopt.evaluation.suites.sources import halves, small_images
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    ImageCNNTask,
    ImageMLPTask,
    ImageViTTask,
    LabelledImages,
    TabularTask,
    Task,
)
from lightning_lopt.tasks.data import load_images
from lightning_lopt.tasks.finetune import FineTuneTask, Pretraining
from lightning_lopt.tasks.finetune.synthetic_images import draw_images, few_of_each, of_classes
from lightning_lopt.tasks.finetune.teachers import related_table, teacher_table
from lightning_lopt.tasks.tabular import with_noise
from lightning_lopt.tasks.text import resolve_texts

VOCABULARY = 48
OLD, NEW = 20, 8  # classes of images
SEED = 1234  # of data, pretrained models and splits


def finetune_problems(data: Iterable[str] = ()) -> list[Problem]:
    """Small problems of 150 to 350 steps with a pretrained body and a new head.

    Six problems have few examples, two have adapters, and one has the classes of a network. Each set of images in
    ``data`` adds six problems, three of them with few examples.
    """
    on_images = [problem for source in data for problem in of_images(small_images(load_images(source)))]
    plain = [cnn_on_new_classes(), vit_on_new_classes(), perceptron_on_new_images(), *texts(), related_values()]
    return [*plain, adapters_of_a_vit(), adapters_of_a_transformer(), related_classes(), *on_images]


def cnn_on_new_classes() -> Problem:
    """A convolutional network, pretrained on 20 classes of images; it learns 8 other classes with 4 images each."""
    images = _images("cnn")
    options = {"channels": (12, 24), "activation": "gelu", "readout": "flatten"}
    body = ImageCNNTask(*_old(images), **options)
    task = ImageCNNTask(*_few(images, 4), **options, batch_size=16)
    return _problem("choose-cnn-classes", FineTuneTask(task, Pretraining(body, 400, 5e-3, SEED)), 150)


def vit_on_new_classes() -> Problem:
    """A vision transformer that learns 8 new classes with 6 images each; its patches and its first block are frozen."""
    images = _images("vit")
    options = {"grid": 4, "width": 24, "depth": 2}
    body = ImageViTTask(*_old(images), **options)
    task = ImageViTTask(*_few(images, 6), **options, batch_size=12)
    frozen = [name for name in task.roles if name.startswith(("patch", "position", "blocks.0"))]
    half_frozen = FineTuneTask(task, Pretraining(body, 600, 5e-3, SEED), frozen=frozen)
    return _problem("choose-vit-half-frozen", half_frozen, 150)


def perceptron_on_new_images() -> Problem:
    """A perceptron, pretrained on 20 classes; the new images are noisy, and each of 5 classes joins 4 old classes."""
    images = _images("perceptron")
    clean = of_classes(images, torch.arange(OLD))
    noise = torch.randn(clean.inputs.shape, generator=generator(SEED, "perceptron", "noise"))
    noisy = replace(clean, inputs=0.7 * clean.inputs + 0.5 * noise + 0.2, targets=clean.targets // 4, classes=OLD // 4)
    body = ImageMLPTask(*_old(images), (64, 48), "gelu")
    task = ImageMLPTask(*few_of_each(noisy, 12, generator(SEED, "few")), (64, 48), "gelu", batch_size=12)
    return _problem("choose-mlp-images", FineTuneTask(task, Pretraining(body, 800, 3e-3, SEED)), 150)


def texts() -> list[Problem]:
    """A transformer and a recurrent network, pretrained on one source file; they learn a short part of another file."""
    old_text, new_text = resolve_texts(None)[7], resolve_texts(None)[12]
    alphabet = old_text.alphabet[:VOCABULARY]
    old_tokens, tokens = old_text.in_alphabet(alphabet), new_text.in_alphabet(alphabet)
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
    """A perceptron, pretrained on values of a random network; it learns other values of the same hidden layers."""
    widths, draws = (32, 32), generator(SEED, "values")
    teacher, pretraining_table = teacher_table(draws, (12, *widths, 12), "tanh", 6000)
    train, valid = related_table(teacher, draws, 3, "tanh", 580).cut(500)
    body = TabularTask(*pretraining_table.cut(500), widths, "squared", activation="tanh", batch_size=64)
    task = TabularTask(with_noise(train, 0.1, draws), valid, widths, "squared", activation="tanh", batch_size=16)
    return _problem("choose-values", FineTuneTask(task, Pretraining(body, 1500, 1e-2, SEED)), 300)


def adapters_of_a_vit() -> Problem:
    """Adapters of rank 2 on a vision transformer, for 8 new classes with 6 images each."""
    images, options = _images("adapters"), {"grid": 4, "width": 24, "depth": 2}
    body = Pretraining(ImageViTTask(*_old(images), **options), 600, 5e-3, SEED)
    task = ImageViTTask(*_few(images, 6), **options, batch_size=12)
    return _problem("choose-vit-adapters", FineTuneTask(task, body, rank=2), 250)


def adapters_of_a_transformer() -> Problem:
    """Adapters of rank 4 on a language model, which learn another text in reverse order."""
    old_text, new_text = resolve_texts(None)[5], resolve_texts(None)[9]
    alphabet, options = old_text.alphabet[:VOCABULARY], {"width": 24, "depth": 2, "length": 20}
    old_tokens, tokens = old_text.in_alphabet(alphabet), new_text.in_alphabet(alphabet)
    before = CharTransformerTask(old_tokens[:-4000], old_tokens[-4000:], VOCABULARY, **options, batch_size=16)
    task = CharTransformerTask(tokens[:3000].flip(0), tokens[-6000:].flip(0), VOCABULARY, **options, batch_size=8)
    adapted = FineTuneTask(task, Pretraining(before, 800, 5e-3, SEED), rank=4)
    return _problem("choose-text-adapters", adapted, 250)


def related_classes() -> Problem:
    """A perceptron, pretrained on values of a random network; it learns classes of the same hidden layers."""
    widths, draws = (28, 14), generator(SEED, "classes")
    teacher, pretraining_table = teacher_table(draws, (14, *widths, 24), "tanh", 6000)
    train, valid = related_table(teacher, draws, 4, "tanh", 1080, classify=True).cut(1000)
    body = TabularTask(*pretraining_table.cut(500), widths, "squared", activation="tanh", batch_size=64)
    task = TabularTask(with_noise(train, 0.1, draws), valid, widths, "cross_entropy", activation="tanh", batch_size=16)
    return _problem("choose-classes", FineTuneTask(task, Pretraining(body, 1500, 1e-2, SEED)), 350)


def of_images(data: LabelledImages) -> Iterator[Problem]:
    """Six problems on a set of images.

    Three networks learn four new classes with 6 images each. Two networks, one of them with adapters, learn all images
    of all classes. A body that was trained for only a few steps of gradient descent learns half of all images.
    """
    label, images = data.name, data.standardised()
    old_classes = of_classes(images, torch.arange(6))
    rows = torch.randperm(len(old_classes), generator=generator(SEED, "some"))[:3000]
    pretraining_images = old_classes.take(rows).split(0.1, generator(SEED, "old"))
    few, few_valid = few_of_each(of_classes(images, torch.arange(6, 10)), 6, generator(SEED, "few"))
    few_valid = few_valid.take(torch.randperm(len(few_valid), generator=generator(SEED, "others"))[:800])
    everything, held_out = images.split(0.2, generator(SEED, "all"))
    held_out = held_out.take(torch.arange(1000))
    kinds: list[tuple[str, Callable[..., Task], dict[str, Any], int]] = [
        ("mlp", ImageMLPTask, {"activation": "gelu", "widths": (64, 48)}, 400),
        ("cnn", ImageCNNTask, {"activation": "gelu", "channels": (8, 16), "readout": "flatten"}, 300),
        ("vit", ImageViTTask, {"width": 24}, 400),
    ]
    for name, network, options, steps in kinds:
        body = Pretraining(network(*pretraining_images, **options), steps, seed=SEED)
        yield _problem(f"{label}-{name}-few", FineTuneTask(network(few, few_valid, **options, batch_size=8), body), 200)
        if name != "cnn":
            task = network(everything, held_out, **options, batch_size=24)
            yield _problem(f"{label}-{name}-many", FineTuneTask(task, body, rank=2 if name == "vit" else 0), 250)
    yield _problem(f"{label}-barely-trained", fine_tuning(*halves(data)), 200)


def _images(name: str) -> LabelledImages:
    return draw_images(generator(SEED, name), OLD + NEW, 6000, parts=8, noise=0.3)


def _old(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Many images of the first classes for pretraining, and held-out images."""
    return of_classes(images, torch.arange(OLD)).split(0.1, generator(SEED, "old"))


def _few(images: LabelledImages, shots: int) -> tuple[LabelledImages, LabelledImages]:
    """Few images of the other classes for fine-tuning, and held-out images."""
    return few_of_each(of_classes(images, torch.arange(OLD, OLD + NEW)), shots, generator(SEED, "few"))


def _problem(name: str, task: Task, horizon: int) -> Problem:
    return Problem(name, task, horizon, "", "choosing")


COLUMNS = (
    "problem",
    "steps",
    "epochs",
    "AdamW",
    "its rate",
    "head alone",
    "AdamW 1e-3",
    "base",
    "moved: AdamW",
    "moved: base",
)


def row(problem: Problem, seeds: int) -> dict[str, Measurement]:
    """Measurements of the three baselines and of `base`."""
    baselines = Baselines(seeds=seeds, shipped=False)
    runs = {name: baselines(problem, name) for name in FINE_TUNING_BASELINES}
    return runs | {"base": run_rules([load_rule("base")], problem, seeds=seeds)[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--suite", action="store_true", help="use the suite `finetune` instead, which is not for choosing"
    )
    parser.add_argument("--data", nargs="+", default=[], help="sets of images")
    parser.add_argument("--change", nargs="+", default=[], help="entries of θ, and numbers to add to them")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE,...", help="rules with other settings")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of problems")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scratch", action="store_true", help="also run AdamW from random initial values")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    last = ("from scratch",) if arguments.scratch else ()
    columns = (*COLUMNS, *arguments.change, *arguments.config, *last, "CPU seconds of base")
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    for problem in make_suite("finetune") if arguments.suite else finetune_problems(arguments.data):
        if not any(part in problem.name for part in arguments.only):
            continue
        runs = row(problem, arguments.seeds)
        steps = problem.task.steps_per_epoch
        epochs = "" if steps is None else f"{problem.horizon / steps:.1f}"
        cells = [problem.name, str(problem.horizon), epochs, valid(runs["adamw_warmup"])]
        cells += [f"{runs['adamw_warmup'].learning_rate:g}", valid(runs["adamw_head"]), valid(runs["adamw_default"])]
        cells += [valid(runs["base"]), moved(runs["adamw_warmup"]), moved(runs["base"])]
        rules = [changed("base", change) for change in arguments.change]
        cells += [valid(run) for run in (run_rules(rules, problem, seeds=arguments.seeds) if rules else ())]
        for settings in arguments.config:
            cells += [valid(run) for run in run_rules([configured("base", settings)], problem, seeds=arguments.seeds)]
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
    """Median distance that the body has moved at the end, divided by its norm at the start."""
    return f"{float(run.metrics['body_moved'][-1].median()):.2f}" if "body_moved" in run.metrics else ""


if __name__ == "__main__":
    main()
