"""Inner runs live on the device of the rule; what they draw is the same on every device."""

import lightning.pytorch as L
import pytest
import torch

from lightning_lopt import (
    NRES,
    PES,
    AdamRule,
    ESSingle,
    FullES,
    MetaLoss,
    MetaTrainer,
    ResidualRule,
    TaskDataModule,
    TruncatedBackprop,
    TruncatedES,
)
from lightning_lopt.meta import start_runs, unroll
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP
from lightning_lopt.tasks.mixtures import make_families


def task():
    family = ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,), variety=False, activations=("tanh",))
    return family.sample(generator(3))


def test_the_engine_puts_all_on_the_device_of_the_rule():
    """On the meta device, which has shapes and no numbers: mixing devices would raise."""
    rule = AdamRule().to("meta")
    particles = {name: torch.stack([value.detach()] * 4) for name, value in rule.named_parameters()}
    runs, losses = unroll(
        rule, particles, start_runs(rule, task(), pairs=2, horizon=9, seed=0), 2, generator(0), ("train", "valid")
    )
    assert losses.shape == (2, 2, 4)
    assert losses.is_meta
    assert all(value.is_meta for value in runs.params.values())
    assert all(value.is_meta for own in runs.state.tensors.values() for value in own.values())


@pytest.mark.parametrize("family", make_families("broad"), ids=lambda family: family.name)
def test_tasks_keep_nothing_on_another_device(family):
    rule = AdamRule().to("meta")
    particles = {name: torch.stack([value.detach()] * 2) for name, value in rule.named_parameters()}
    runs = start_runs(rule, family.sample(generator(1)), pairs=1, horizon=9, seed=0)
    _, losses = unroll(rule, particles, runs, 2, generator(0), ("train", "valid"))
    assert losses.is_meta


@pytest.mark.gpu
@pytest.mark.parametrize(
    "estimator",
    [
        FullES(2),
        PES(4, 2),
        NRES(4, 2, shaping="rank"),
        ESSingle(4, 2),
        TruncatedES(4, 2, meta_loss=MetaLoss("log", "both", 0.5)),
        TruncatedBackprop(4, 2, clip=1.0),
    ],
    ids=lambda estimator: estimator.name,
)
def test_estimates_on_a_gpu_are_those_on_the_cpu(estimator):
    torch.manual_seed(0)
    rule, estimates = ResidualRule(), {}
    for device in ("cpu", "cuda"):
        rule.to(device)
        runs = estimator.start(rule, task(), horizon=8, seed=0)
        while not runs.finished:
            estimate = estimator.estimate(rule, [runs])
            (runs,) = estimate.groups
        estimates[device] = estimate.gradient.cpu()
    scale = float(estimates["cpu"].abs().max())
    torch.testing.assert_close(estimates["cuda"], estimates["cpu"], rtol=1e-2, atol=1e-2 * scale)


@pytest.mark.gpu
def test_meta_trainer_runs_and_learns_on_cuda():
    module = MetaTrainer(ResidualRule(), PES(10, pairs=8, sigma=0.05), groups=2, horizons=(20, 60), lr=0.01)
    before = {name: value.detach().clone() for name, value in module.rule.named_parameters()}
    trainer = L.Trainer(
        max_steps=20, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, TaskDataModule("image_mlp"))
    assert float(trainer.callback_metrics["failures"]) == 0
    assert any(not torch.equal(value.cpu(), before[name]) for name, value in module.rule.named_parameters())
