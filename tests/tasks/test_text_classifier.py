"""The text classifier has the body of a language model, and answers the mean over its tokens."""

import pytest
import torch

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import CharTransformerTask, FineTuneTask, Pretraining, TextClassifierTask
from lightning_lopt.tasks.text_classifier import pieces_of

SHAPE = {"width": 8, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(11, (300,), generator=generator(0))


@pytest.fixture(scope="module")
def task(tokens):
    few = pieces_of([tokens[:60], tokens[60:120]], 10, 4)
    others = pieces_of([tokens[120:160], tokens[160:200]], 10, 3)
    return TextClassifierTask(few, others, 11, **SHAPE)


def test_pieces(tokens):
    texts = pieces_of([tokens[:60], tokens[60:120]], 10, 4)
    assert texts.inputs.shape == (8, 10)
    assert texts.targets.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(texts.inputs[0], tokens[:10])
    assert torch.equal(texts.inputs[7], tokens[110:120])


def test_the_body_is_that_of_a_language_model(task, tokens):
    model = CharTransformerTask(tokens, tokens, 11, **SHAPE, length=10)
    params, inputs = model.init(generator(1)), task.full_batch("train")["inputs"]
    head = {"head.weight": torch.eye(8), "head.bias": torch.zeros(8)}
    features = model.logits(params | head, inputs)
    ours = task.init(generator(2)) | {name: value for name, value in params.items() if "head" not in name}
    wanted = features.mean(1) @ ours["head.weight"].mT + ours["head.bias"]
    torch.testing.assert_close(task.logits(ours, inputs), wanted)


def test_everything_but_the_head_is_pretrained(task, tokens):
    model = CharTransformerTask(tokens, tokens, 11, **SHAPE, length=10)
    tuned = FineTuneTask(task, Pretraining(model, steps=2))
    assert tuned.head == ("head.weight", "head.bias")
    assert tuned.body.keys() == task.roles.keys() - set(tuned.head)
    assert tuned.loss_scale == pytest.approx(0.6931, abs=1e-4)
