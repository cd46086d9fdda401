"""Tables of categories and numbers: what is drawn, what the network computes, and what dropout drops."""

import math

import pytest
import torch
import torch.nn.functional as F
from task_helpers import check_draws

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import MixedTableTask
from lightning_lopt.tasks.mixed_table import MASKS, draw_mixed_table

COUNTS = (3, 40)


@pytest.fixture(scope="module")
def drawn():
    return draw_mixed_table(generator(0), 4000, COUNTS, 5, 3)


@pytest.fixture(scope="module")
def task(drawn):
    table, _ = drawn
    return MixedTableTask(table.rows(0, 3000), table.rows(3000, 4000), (16, 12), 0.25, batch_size=8)


def test_classes_are_drawn_from_their_probabilities(drawn):
    """No network can have a lower expected loss than their entropy, and the probabilities have it."""
    table, chances = drawn
    of_targets = -chances.gather(1, table.targets[:, None])[:, 0].log()
    entropy = -(chances * chances.log()).sum(1)
    difference = of_targets - entropy
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(table) ** 0.5
    assert 0.2 < float(entropy.mean()) < 0.95 * math.log(3)


def test_frequencies_follow_the_law_of_zipf(drawn):
    table, _ = drawn
    for column, count in enumerate(COUNTS):
        shares = torch.bincount(table.categories[:, column], minlength=count) / len(table)
        wanted = 1 / torch.arange(1.0, count + 1)
        wanted = wanted / wanted.sum()
        assert ((shares - wanted).abs() < 4 * (wanted / len(table)).sqrt()).all()


def test_logits_of_a_whole_split(task, drawn):
    params, table = task.init(generator(1)), drawn[0].rows(3000, 4000)
    rows = [params[f"embeddings.{column}.weight"][table.categories[:, column]] for column in range(2)]
    x = torch.cat([*rows, table.numbers], 1)
    for layer in range(2):
        x = F.relu(F.linear(x, params[f"layers.{layer}.weight"], params[f"layers.{layer}.bias"]))
    logits = F.linear(x, params["layers.2.weight"], params["layers.2.bias"])
    batch = task.full_batch("valid")
    torch.testing.assert_close(task.logits(params, batch), logits)
    torch.testing.assert_close(task.loss(params, batch), F.cross_entropy(logits, table.targets))
    assert [role for role in task.roles.values() if role != "vector"] == ["embedding"] * 2 + ["matrix"] * 2 + ["head"]


def test_dropout_keeps_the_mean_and_follows_from_the_seed(drawn):
    """Logits of one hidden layer are linear in its mask, so their mean is that of the network without dropout."""
    table, _ = drawn
    task = MixedTableTask(table.rows(0, 2), table.rows(2, 4), (16,), 0.25, batch_size=2)
    params, plain = task.init(generator(1)), task.full_batch("train")
    seeds = torch.arange(4000)
    logits = torch.func.vmap(lambda seed: task.logits(params, plain | {MASKS: seed}))(seeds)
    stderr = logits.std(0) / len(seeds) ** 0.5
    assert ((logits.mean(0) - task.logits(params, plain)).abs() < 5 * stderr).all()
    assert torch.equal(task.logits(params, plain | {MASKS: seeds[7]}), task.logits(params, plain | {MASKS: seeds[7]}))
    assert not torch.equal(logits[0], logits[1])


def test_a_quarter_is_dropped(drawn):
    table, _ = drawn
    task = MixedTableTask(table.rows(0, 3000), table.rows(3000, 4000), (16,), 0.25)
    params = {name: torch.zeros_like(value) for name, value in task.init(generator(0)).items()}
    params["layers.0.bias"].fill_(0.75)
    params["layers.1.weight"].fill_(1.0)
    logits = task.logits(params, task.full_batch("train") | {MASKS: torch.tensor(5)})
    assert set(logits.round().flatten().tolist()) <= {float(count) for count in range(17)}
    assert float(logits.mean() / 16) == pytest.approx(0.75, abs=0.01)


def test_batches_have_a_seed_and_splits_have_none(task):
    assert task.batch(generator(0), 3, 2)[MASKS].shape == (3, 2)
    assert MASKS not in task.full_batch("train")
    check_draws(task, ("train", "valid"))
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        MixedTableTask(*[draw_mixed_table(generator(0), 10, (2,), 1, 2)[0]] * 2, (4,), 1.0)
