import math

import pytest
import torch

from lightning_lopt import PES, FullES, MetaLoss, SGDRule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP, Quadratic


def test_scales_caps_and_what_is_not_finite():
    losses = torch.tensor([0.5, 3.0, math.inf, math.nan])
    torch.testing.assert_close(MetaLoss().of_losses(losses), torch.tensor([0.5, 1.5, 1.5, 1.5]))
    torch.testing.assert_close(MetaLoss("log", floor=0.5).of_losses(losses), torch.tensor([1.0, 2.0, 2.0, 2.0]).log())
    uncapped = MetaLoss(cap=None).of_losses(losses)
    assert uncapped[:2].tolist() == [0.5, 3.0]
    assert uncapped[2:].isnan().all()


@pytest.mark.parametrize("last", [1.0, 0.3, 0.01])
def test_weights_average_one_over_a_run_however_it_is_cut(last):
    meta_loss = MetaLoss(last=last)
    pieces = [meta_loss.weights(first, min(7, 40 - first), 40) for first in range(0, 40, 7)]
    whole = torch.cat(pieces)
    torch.testing.assert_close(whole, meta_loss.weights(0, 40, 40))
    assert float(whole.mean()) == pytest.approx(1.0)
    assert whole[-1] > 0


def test_last_counts_the_end_alone():
    """The learning rate of a run whose end lies past its optimum is judged by its end."""
    task = Quadratic(torch.tensor([1.0]))
    rule = SGDRule(0.05, momentum=0.0)
    for last, steps in ((1.0, range(10)), (0.1, range(9, 10))):
        estimator = FullES(pairs=64, sigma=1e-3, meta_loss=MetaLoss(last=last, cap=None))
        estimate = estimator.estimate(rule, [estimator.start(rule, task, horizon=10, seed=0)])
        # L_t / s = (1 - η)^2t, so dL/d log η = -2 t η (1 - η)^(2t - 1)
        exact = sum(-2 * t * 0.05 * 0.95 ** (2 * t - 1) for t in steps) / len(steps)
        # a single perturbation per pair: its square averages σ² with a relative error of sqrt(2 / 64)
        assert float(estimate.gradient) == pytest.approx(exact, rel=4 * math.sqrt(2 / 64))


def test_log_scale_ignores_a_factor_on_the_loss_and_linear_does_not():
    gradients = {}
    for scale in ("linear", "log"):
        for factor in (1.0, 100.0):
            task = Quadratic(torch.tensor([1.0, 4.0]))
            task.loss_scale *= factor
            estimator = PES(5, pairs=4, meta_loss=MetaLoss(scale, floor=1e-9))
            runs = estimator.start(SGDRule(0.05), task, horizon=20, seed=0)
            gradients[scale, factor] = float(estimator.estimate(SGDRule(0.05), [runs]).gradient)
    assert gradients["log", 1.0] == pytest.approx(gradients["log", 100.0], rel=1e-4)
    assert gradients["linear", 1.0] == pytest.approx(100 * gradients["linear", 100.0], rel=1e-4)


def test_splits_measure_different_images():
    """On labels that cannot be learned, training on few images lowers their loss and not that of others."""
    family = ImageMLP(depths=(1,), widths=(64,), batch_sizes=(64,), variety=False)
    task = family.sample(generator(0))
    few = {name: value[:64].clone() for name, value in task.splits["train"].items()}
    few["targets"] = torch.randint(10, (64,), generator=generator(1))
    task.splits = {**task.splits, "train": few}
    losses = {}
    for split in ("train", "valid", "both"):
        estimator = FullES(pairs=1, sigma=1e-6, meta_loss=MetaLoss(split=split, last=0.1, cap=None))
        runs = estimator.start(SGDRule(0.1), task, horizon=100, seed=0)
        losses[split] = float(estimator.estimate(SGDRule(0.1), [runs]).meta_losses)
    assert losses["valid"] > 1.5 * losses["train"]
    assert losses["train"] < losses["both"] < losses["valid"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scale": "cubic"}, "scale"),
        ({"split": "test"}, "split"),
        ({"last": 0.0}, "last"),
        ({"cap": -1.0}, "cap"),
        ({"floor": 0.0}, "floor"),
    ],
)
def test_bad_settings_get_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MetaLoss(**settings)
