"""The suite ``real``: eight common kinds of models; a run takes minutes on one thread of a CPU."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lopt.evaluation.measurement import Problem
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import (
    CharRNNTask,
    CharTransformerTask,
    FineTuneTask,
    FlowMatchingTask,
    ImageResNetTask,
    ImageUNetTask,
    LabelledImages,
    MixedTableTask,
    PolicyGradientTask,
    Pretraining,
    Text,
    TextClassifierTask,
)
from lightning_lopt.tasks.finetune.synthetic_images import draw_images
from lightning_lopt.tasks.mixed_table import draw_mixed_table
from lightning_lopt.tasks.policy_gradient import draw_visits
from lightning_lopt.tasks.text import OTHER_MODULES, TextLike, resolve_texts, standard_library
from lightning_lopt.tasks.text_classifier import pieces_of

VOCABULARY = 96
SIDE = 32
SMALLEST_SIDE = 24
"""Least side (pixels) of images for the residual network; smaller images are too coarse."""
MAX_TRAIN, MAX_VALID = 2000, 300  # largest numbers of images; whole splits are measured at once
CLASSES, SHOTS, VALID_SHOTS = 8, 40, 64  # numbers of classes and of pieces of text per class in the fine-tuning problem
PIECE = 48


def problems(sources: list[LabelledImages], text: TextLike | None = None) -> list[Problem]:
    """Three problems on each set of images, two language models, a fine-tune, a table, and a policy.

    ========================= ======= ====================================================================
    problem                   steps   model and data
    ========================= ======= ====================================================================
    ``*-transformer-0.8m``    2,000   causal transformer, 4 blocks of width 128, 12 windows of 64
    ``*-resnet-18-half``      400     ResNet-18 of half width, batch normalisation, 32 × 32 images
    ``*-unet``                2,000   U-Net of three levels that removes noise from 16 × 16 images
    ``*-gru``                 2,000   language model, a gated recurrent unit of width 128
    ``mixed-table``           2,000   embeddings, perceptron, dropout; 4,000 rows with random classes
    ``*-flow``                4,000   flow matching on images of at most 16 × 16 pixels
    ``clicks``                4,000   policy gradient of a contextual bandit
    ``modules-finetune``      2,000   classifier on a pretrained language model, 320 pieces of text
    ========================= ======= ====================================================================

    The residual network has fewer steps than the other problems, because one of its steps takes 0.3 seconds.

    The given images are resized for all networks. Images with a side below 24 pixels, for instance the handwritten
    digits, are an exception: enlarged images would have no details, so the residual network has synthetic images of
    32 × 32 pixels instead. All such sets share one problem.

    Args:
        sources: sets of images.
        text: one or several texts for the language models, see :func:`~lightning_lopt.tasks.text.resolve_texts`;
            ``None`` means sources of Python's standard library that meta-training never uses. The fine-tuning problem
            always has these sources.

    Raises:
        ValueError: if a text cannot be loaded, or this Python installation has no sources.

    Example:
        >>> [problem.name for problem in problems([synthetic_images()])][:3]
        ['python-transformer-0.8m', 'python-gru', 'parts-resnet-18-half']
    """
    large = [source for source in sources if min(source.shape[1:]) >= SMALLEST_SIDE]
    synthetic = [] if len(large) == len(sources) else [synthetic_images()]
    on_images = [problem for source in sources for problem in (_unet(source), _flow(source))]
    return [
        *_language_models(text),
        *(_resnet(source) for source in (*large, *synthetic)),
        *on_images,
        _table(),
        _policy(),
        _fine_tune(),
    ]


def synthetic_images() -> LabelledImages:
    """2,300 images of ten classes that share their parts, shape ``(2300, 1, 32, 32)``.

    :func:`~lightning_lopt.tasks.finetune.synthetic_images.draw_images` draws the images at half the size; then they are
    enlarged.
    """
    return draw_images(
        generator(0, "real", "images"), 10, MAX_TRAIN + MAX_VALID, SIDE // 2, parts=8, noise=0.5
    ).resized(SIDE)


def _train_and_valid(images: LabelledImages, side: int) -> tuple[LabelledImages, LabelledImages]:
    """At most 2,000 standardised images for training, and at most 300 other images for validation."""
    order = torch.randperm(len(images), generator=generator(0, "real", "images"))[: MAX_TRAIN + MAX_VALID]
    selected_images = images.take(order).resized(side).standardised()
    return selected_images.split(MAX_VALID / (MAX_TRAIN + MAX_VALID), generator(0, "split"), MAX_VALID)


def _resnet(source: LabelledImages) -> Problem:
    task = ImageResNetTask(*_train_and_valid(source, SIDE), (32, 64, 128, 256), blocks=2, batch_size=32)
    return Problem(f"{source.name}-resnet-18-half", task, 400, "image_resnet", source.name)


def _unet(source: LabelledImages) -> Problem:
    task = ImageUNetTask(*_train_and_valid(source, SIDE // 2), (16, 32, 64), batch_size=16)
    return Problem(f"{source.name}-unet", task, 2000, "", source.name)


def _flow(source: LabelledImages) -> Problem:
    side = min(SIDE // 2, *source.shape[1:])
    return Problem(
        f"{source.name}-flow", FlowMatchingTask(*_train_and_valid(source, side), batch_size=64), 4000, "", source.name
    )


def _language_models(text: TextLike | None) -> list[Problem]:
    """Language models of all texts; each text's last tenth is for validation, and rare characters become one token."""
    texts = _library_texts() if text is None else resolve_texts(text)
    name = "python" if text is None else texts[0].name
    alphabet = texts[0].alphabet[:VOCABULARY]
    tokens = [text_tokens.in_alphabet(alphabet) for text_tokens in texts]
    train = torch.cat([text_tokens[: 9 * len(text_tokens) // 10] for text_tokens in tokens])
    valid = torch.cat([text_tokens[9 * len(text_tokens) // 10 :] for text_tokens in tokens])
    transformer = CharTransformerTask(
        train, valid, len(alphabet), width=128, depth=4, heads=4, expansion=4, length=64, batch_size=12
    )
    gru = CharRNNTask(train, valid, len(alphabet), embedding=64, width=128, length=48, batch_size=16)
    return [
        Problem(f"{name}-transformer-0.8m", transformer, 2000, "char_transformer", name),
        Problem(f"{name}-gru", gru, 2000, "char_rnn", name),
    ]


def _library_texts() -> list[Text]:
    return list(standard_library(OTHER_MODULES))


def _table() -> Problem:
    table, _ = draw_mixed_table(generator(0, "real", "table"), 6000, (3, 5, 8, 20, 50, 200), 8, 3)
    task = MixedTableTask(table.rows(0, 4000), table.rows(4000, 6000), (128, 64), 0.3, batch_size=64)
    return Problem("mixed-table", task, 2000, "", "synthetic")


def _policy() -> Problem:
    visits = draw_visits(generator(0, "real", "visits"), 4000, 1000, features=16, offers=8)
    return Problem("clicks", PolicyGradientTask(*visits, batch_size=128), 4000, "", "synthetic")


def _fine_tune() -> Problem:
    """Classification of pieces of text by module; the body is pretrained on the first seven tenths of each text."""
    texts = _library_texts()
    alphabet = texts[0].alphabet[:VOCABULARY]
    tokens = [text_tokens.in_alphabet(alphabet) for text_tokens in texts]
    cuts = [[len(text_tokens) * share // 10 for share in (7, 8, 9)] for text_tokens in tokens]
    pretraining_train = torch.cat([text_tokens[: cut[0]] for text_tokens, cut in zip(tokens, cuts, strict=True)])
    pretraining_valid = torch.cat([text_tokens[cut[0] : cut[1]] for text_tokens, cut in zip(tokens, cuts, strict=True)])
    later = list(zip(tokens, cuts, strict=True))[:CLASSES]
    train_pieces = pieces_of([text_tokens[cut[1] : cut[2]] for text_tokens, cut in later], PIECE, SHOTS)
    valid_pieces = pieces_of([text_tokens[cut[2] :] for text_tokens, cut in later], PIECE, VALID_SHOTS)
    blocks: dict[str, Any] = {"width": 48, "depth": 2, "heads": 4}
    body = CharTransformerTask(
        pretraining_train, pretraining_valid, len(alphabet), **blocks, length=PIECE, batch_size=16
    )
    classifier = TextClassifierTask(train_pieces, valid_pieces, len(alphabet), **blocks, batch_size=16)
    task = FineTuneTask(classifier, Pretraining(body, 1000, 5e-3))
    return Problem("modules-finetune", task, 2000, "", "python")
