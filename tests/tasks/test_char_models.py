"""Text and character models: reading, windows, recurrent cells against PyTorch's, causality."""

import math
from pathlib import Path

import pytest
import torch
from family_catalogue import words
from task_helpers import built, normal
from torch import nn

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import CharRNN, CharRNNTask, CharTransformer, CharTransformerTask, Text, load_text
from lightning_lopt.tasks.recurrent import gru_step, lstm_step
from lightning_lopt.tasks.text import MODULES, OTHER_MODULES, resolve_texts, standard_library

TOKENS = torch.arange(400) % 7


def test_characters_are_ranked_by_frequency():
    text = Text.from_string("abacabad" * 300, "toy")
    assert text.alphabet == "abcd"
    assert text.tokens[:8].tolist() == [0, 1, 0, 2, 0, 1, 0, 3]
    assert (text.tokens.dtype, len(text)) == (torch.int64, 2400)


def test_a_file_is_read_as_it_is(tmp_path):
    characters = "Grüße, 世界!\n" * 400
    (tmp_path / "greeting.txt").write_text(characters, encoding="utf-8")
    text = load_text(tmp_path / "greeting.txt")
    assert text.name == "greeting"
    assert "".join(text.alphabet[token] for token in text.tokens.tolist()) == characters


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r'novel.txt: no such text file; give the path of a text file, or "stdlib"'),
        (b"\xff\xfe" * 2000, r"novel.txt: not a text in UTF-8 \(byte 0 is invalid\); convert it"),
        (b"short", "novel: the text has 5 characters; give 2000 characters or more"),
        (b"a" * 3000, "novel: the text repeats one character only"),
    ],
)
def test_unusable_files(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "novel.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        CharRNN(tmp_path / "novel.txt")


def test_too_large_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_lopt.tasks.text.MAX_BYTES", 10)
    (tmp_path / "novel.txt").write_text("something longer")
    with pytest.raises(ValueError, match="the file has 16 bytes, more than 10; cut a part out of it"):
        load_text(tmp_path / "novel.txt")


def test_the_standard_library_is_read_in_order():
    texts = standard_library()
    names = [text.name for text in texts]
    assert names == [module for module in MODULES if module in names]  # some are a few lines on newer Pythons
    assert len(names) >= len(MODULES) - 2
    import argparse

    source = Path(argparse.__file__).read_text(encoding="utf-8")
    assert "".join(texts[0].alphabet[token] for token in texts[0].tokens.tolist()) == source
    assert [text.name for text in resolve_texts(["stdlib", words()])] == [*names, "words0"]
    with pytest.raises(ValueError, match="text is an empty list"):
        resolve_texts([])


def test_other_modules_are_read_by_no_family():
    texts = standard_library(OTHER_MODULES)
    assert not {text.name for text in texts} & {text.name for text in resolve_texts(None)}
    assert len(texts) >= 10
    assert sum(map(len, texts)) > 600_000


def test_modules_of_a_few_lines_are_left_out(monkeypatch):
    monkeypatch.setattr("lightning_lopt.tasks.text.MODULES", ("this", "argparse"))
    assert [text.name for text in standard_library.__wrapped__()] == ["argparse"]


def test_a_python_without_sources(monkeypatch):
    monkeypatch.setattr("lightning_lopt.tasks.text.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="no sources of its standard library; give the path of a text file"):
        standard_library.__wrapped__()


def test_windows_are_consecutive_and_stay_in_their_split():
    train, valid = torch.arange(300), torch.arange(1000, 1050)
    task = CharRNNTask(train, valid, 2000, length=9, batch_size=5)
    for split, low, high in (("train", 0, 300), ("valid", 1000, 1050)):
        tokens = task.batch(generator(0), 200, split=split)["tokens"]
        assert tokens.shape == (200, 5, 10)
        assert (tokens.diff() == 1).all()
        assert (tokens.min(), tokens.max()) == (low, high - 1)
        full = task.full_batch(split)["tokens"]
        assert (full.diff() == 1).all()
        predicted = full[:, 1:].flatten()
        assert len(predicted.unique()) == len(predicted)  # no character is measured twice
    assert task.full_batch("valid")["tokens"].shape == (5, 10)
    task.MAX_WINDOWS = 4
    assert task.full_batch("train")["tokens"][:, 0].tolist() == [0, 99, 189, 288]


def test_too_short_a_split():
    with pytest.raises(ValueError, match="the valid split has 9 characters, too few for windows of 9"):
        CharRNNTask(TOKENS, TOKENS[:9], 7, length=9)


def test_excerpts_are_split_without_overlap_and_read_as_they_say():
    text = Text(torch.arange(50_000), "".join(map(chr, range(50_000))), "count")
    family = CharTransformer(text, vocabularies=(60_000,), excerpts=(5000, 20_000), lengths=(20,))
    seen = set()
    for seed in range(12):
        task = family.sample(generator(seed))
        excerpt = task.config["excerpt"]
        both = torch.cat([task.tokens["train"], task.tokens["valid"]])
        start, size = excerpt["start"], excerpt["size"]
        expected = torch.arange(start, start + size)
        expected = expected.flip(0) if excerpt["backwards"] else expected
        assert len(both) == size
        assert len(task.tokens["valid"]) == round(0.1 * size)
        changed = (both != expected).float()
        assert not changed[len(task.tokens["train"]) :].any()
        assert changed.sum().item() / len(task.tokens["train"]) == pytest.approx(excerpt["noise"], abs=0.01)
        seen.add((excerpt["backwards"], excerpt["noise"] > 0))
    assert len(seen) > 2


def test_rare_characters_become_one_token():
    task = CharRNN(words(), vocabularies=(8,)).sample(generator(0))
    assert task.tokens["train"].max() == 7
    assert task.loss_scale == pytest.approx(math.log(8))
    assert CharRNN(words(), vocabularies=(999,)).sample(generator(0)).loss_scale == pytest.approx(
        math.log(len(words().alphabet))
    )


def test_gru_step_is_pytorchs_cell():
    cell, x, hidden = built(lambda: nn.GRUCell(5, 4)), normal(3, 5), normal(3, 4, seed=1)
    projected = x @ cell.weight_ih.T + cell.bias_ih
    torch.testing.assert_close(gru_step(projected, hidden, cell.weight_hh, cell.bias_hh), cell(x, hidden))


def test_lstm_step_is_pytorchs_cell():
    cell, x = built(lambda: nn.LSTMCell(5, 4)), normal(3, 5)
    state = (normal(3, 4, seed=1), normal(3, 4, seed=2))
    projected = x @ cell.weight_ih.T + cell.bias_ih
    for ours, theirs in zip(lstm_step(projected, state, cell.weight_hh, cell.bias_hh), cell(x, state), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("cell", "make"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_model_is_the_module_it_looks_like(cell, make):
    task = CharRNNTask(TOKENS, TOKENS, 7, cell, embedding=5, width=4, depth=2)
    params = task.init(generator(0))
    module = built(lambda: make(5, 4, 2, batch_first=True))
    names = {"weight_ih": "input.weight", "weight_hh": "hidden.weight", "bias_ih": "input.bias"}
    names["bias_hh"] = "hidden.bias"
    module.load_state_dict(
        {f"{key}_l{layer}": params[f"cells.{layer}.{name}"] for layer in range(2) for key, name in names.items()}
    )
    tokens = task.batch(generator(1))["tokens"][:, :-1]
    outputs, _ = module(nn.functional.embedding(tokens, params["embedding.weight"]))
    expected = nn.functional.linear(outputs, params["head.weight"], params["head.bias"])
    torch.testing.assert_close(task.logits(params, tokens), expected)
    assert (task.roles["embedding.weight"], task.roles["head.weight"]) == ("embedding", "head")
    assert task.roles["cells.0.hidden.weight"] == "matrix"


MODELS = {
    "gru": lambda: CharRNNTask(TOKENS, TOKENS, 7, "gru", length=8),
    "lstm": lambda: CharRNNTask(TOKENS, TOKENS, 7, "lstm", length=8),
    "transformer": lambda: CharTransformerTask(TOKENS, TOKENS, 7, length=8),
    "post": lambda: CharTransformerTask(TOKENS, TOKENS, 7, prenorm=False, tied=True, length=8),
}


@pytest.mark.parametrize("name", MODELS)
def test_later_characters_change_no_earlier_logits(name):
    task = MODELS[name]()
    params, tokens = task.init(generator(0)), task.batch(generator(1))["tokens"][:, :-1]
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 7
    before, after = task.logits(params, tokens), task.logits(params, changed)
    assert before.shape == (8, 8, 7)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert ((before - after)[:, 5:].abs().amax((0, 2)) > 1e-4).all()  # and every later one


@pytest.mark.parametrize("name", MODELS)
def test_loss_is_the_next_characters_cross_entropy(name):
    task = MODELS[name]()
    params, batch = task.init(generator(0)), task.batch(generator(1))
    log_probabilities = task.logits(params, batch["tokens"][:, :-1]).log_softmax(-1)
    picked = log_probabilities.gather(-1, batch["tokens"][:, 1:, None])
    torch.testing.assert_close(task.loss(params, batch), -picked.mean())


def test_tied_logits_are_products_with_the_embedding():
    task = CharTransformerTask(TOKENS, TOKENS, 7, width=8, depth=1, tied=True, length=8)
    params = task.init(generator(0))
    assert not any(name.startswith("head") for name in params)
    params["norm.weight"], params["norm.bias"] = torch.zeros(8), normal(8)
    logits = task.logits(params, TOKENS[None, :8])
    torch.testing.assert_close(logits, (params["embedding.weight"] @ normal(8)).expand(1, 8, 7))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cells": ("rnn",)}, "cells must be a sequence of some of 'gru', 'lstm'"),
        ({"valid_fraction": 1.0}, r"valid_fraction must lie in \(0, 1\), got 1.0"),
        ({"lengths": ()}, "lengths must be a sequence of positive integers"),
    ],
)
def test_wrong_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        CharRNN(words(), **options)
