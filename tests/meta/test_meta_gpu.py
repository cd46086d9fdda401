"""Meta-training on a CUDA device: the same draws, the same estimate; the CPU twin is the test of the plain loop."""

import lightning.pytorch as L
import pytest
import torch

from lightning_lopt import PES, MetaTrainer, ResidualRule, TaskDataModule
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import ImageMLP


@pytest.mark.gpu
def test_estimate_on_cuda_equals_that_on_the_cpu():
    torch.manual_seed(0)
    rule = ResidualRule()
    task = ImageMLP(depths=(1,), widths=(16,), batch_sizes=(16,), variety=False).sample(generator(0))
    estimator = PES(5, pairs=4, sigma=0.05)
    estimates = []
    for device in ("cpu", "cuda"):
        rule = rule.to(device)
        estimates.append(estimator.estimate(rule, estimator.start(rule, task, horizon=20, seed=0)))
    assert float(estimates[1].meta_loss) == pytest.approx(float(estimates[0].meta_loss), rel=1e-3)
    for name, value in estimates[0].gradient.items():
        torch.testing.assert_close(estimates[1].gradient[name].cpu(), value, rtol=2e-2, atol=2e-2 * float(value.norm()))


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
