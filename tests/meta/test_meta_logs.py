"""What MetaTrainer logs, and how it goes together with Lightning's own callbacks."""

import math

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint

from lightning_lopt import PES, FullES, MetaLoss, MetaTrainer, ResidualRule, SGDRule, TaskDataModule
from lightning_lopt.meta.estimators.evolution import pair_noise
from lightning_lopt.meta.statistics import signal_to_noise
from lightning_lopt.tasks import ImageMLP, Quadratic, QuadraticFamily, TaskFamily


class Metrics(Callback):
    """Keeps what was logged in each outer step, and the gradient."""

    def __init__(self):
        self.steps, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([value.grad.clone() for value in module.parameters()])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(module, families, *callbacks, ckpt=None, **settings):
    trainer = L.Trainer(
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(module, TaskDataModule(families), ckpt_path=ckpt)
    return trainer


class OneBowl(TaskFamily):
    name = "bowl"

    def __init__(self, start=1.0):
        self.start = start

    def sample(self, generator):
        return Quadratic(torch.tensor([1.0, 4.0]), start=self.start)


def test_meta_loss_by_family_failures_and_step_sizes():
    torch.manual_seed(0)
    families = [ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,)), QuadraticFamily()]
    metrics = Metrics()
    module = MetaTrainer(ResidualRule(), PES(4, pairs=2), groups=6, horizons=50)
    fit(module, families, metrics, max_steps=1)
    logged = metrics.steps[0]
    counts = {"image_mlp": 0, "quadratic": 0}
    for group in module.rank_groups:
        counts[group.runs.task.name.split("/")[0]] += 1
    assert all(counts.values())
    overall = sum(count * logged[f"meta_loss/{family}"] for family, count in counts.items()) / 6
    assert logged["meta_loss"] == pytest.approx(overall, rel=1e-5)
    assert logged["failures"] == 0
    assert logged["inner_steps_per_second"] > 0
    assert {role: logged[f"step_size/{role}"] for role in ("matrix", "vector", "embedding", "head")} == pytest.approx(
        dict.fromkeys(("matrix", "vector", "embedding", "head"), 0.02), rel=0.1
    )


def test_failures_are_logged_and_leave_theta_alone():
    metrics, rule = Metrics(), SGDRule(10.0)
    module = MetaTrainer(rule, PES(4, pairs=3), groups=2, horizons=100)
    fit(module, OneBowl(start=1e20), metrics, max_steps=5, log_every_n_steps=2)
    assert [logged["failures"] for logged in metrics.steps] == [12, 12, 12, 24, 24]  # since it was logged before
    assert float(rule.log_lr.detach().exp()) == pytest.approx(10.0)
    assert metrics.steps[0]["meta_loss"] == pytest.approx(1.5)


def test_gradient_norm_and_signal_to_noise():
    """Against the terms of all pairs of all groups, each estimated by itself."""
    rule, metrics = SGDRule(0.1, momentum=0.0), Metrics()
    estimator = FullES(pairs=4, sigma=0.3, meta_loss=MetaLoss(cap=None))
    module = MetaTrainer(rule, estimator, groups=3, horizons=5, lr=1e-12)
    fit(module, OneBowl(), metrics, max_steps=2, accumulate_grad_batches=2)
    terms = []
    task, theta = Quadratic(torch.tensor([1.0, 4.0])), {"log_lr": torch.tensor(math.log(0.1))}
    for start in (1, 2):
        for group in module.rank_groups:
            group.starts = start
            horizon = module.horizons.draw(group.run_seed, 0, (group.number, 3) if start == 1 else None)
            noise = pair_noise(theta["log_lr"][None], 4, 0.3, group.run_seed, 0)[:, 0]
            for epsilon in noise:
                plus, minus = (
                    task.expected_losses(float((theta["log_lr"] + sign * epsilon).exp()), horizon)[:-1].mean()
                    for sign in (1, -1)
                )
                terms.append(float((plus - minus) / task.loss_scale * epsilon / (2 * 0.3**2)))
    terms = torch.tensor(terms, dtype=torch.float64)
    standard_error = float(terms.std() / len(terms) ** 0.5)
    logged = metrics.steps[1]
    assert logged["gradient_norm"] == pytest.approx(abs(float(terms.mean())), rel=1e-4)
    assert logged["gradient_snr"] == pytest.approx(abs(float(terms.mean())) / standard_error, rel=1e-3)
    assert float(metrics.gradients[0][0]) == pytest.approx(float(terms.mean()), rel=1e-4)


def test_signal_to_noise_of_noise_is_about_one():
    terms = torch.randn(200, 50, 30, generator=torch.Generator().manual_seed(0))  # 200 estimates from 50 terms each
    ratios = [signal_to_noise(float(one.mean(0).norm()), float(one.square().sum(1).mean()), len(one)) for one in terms]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.05)
    assert math.isnan(signal_to_noise(1.0, 1.0, 1))
    assert signal_to_noise(1.0, 1.0, 5) == math.inf


def test_weight_averaging_and_resume(tmp_path):
    """Lightning's callback averages θ; a resumed run ends at the same average and the same θ."""

    def run(folder, ckpt=None):
        torch.manual_seed(0)
        module = MetaTrainer(ResidualRule(), PES(4, pairs=2), groups=2, horizons=(4, 20), lr=0.01, warmup_steps=1)
        average = EMAWeightAveraging(decay=0.5)
        checkpoints = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        fit(module, OneBowl(), average, checkpoints, ckpt=ckpt, max_steps=6)
        return torch.load(folder / "step=6.ckpt", weights_only=True), module

    straight, module = run(tmp_path / "a")
    resumed, _ = run(tmp_path / "b", ckpt=tmp_path / "a" / "step=3.ckpt")
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, resumed[key][name]) for name, value in straight[key].items())
    name = "rule.constants.log_step_size"
    assert not torch.equal(straight["state_dict"][name], straight["current_model_state"][name])
    assert torch.equal(module.rule.constants.log_step_size.detach(), straight["state_dict"][name])  # the average


def test_early_stopping():
    """With a learning rate of next to nothing the meta-loss of the one task, horizon and noise does not improve."""
    module = MetaTrainer(SGDRule(0.1), FullES(pairs=2), groups=1, horizons=5, lr=1e-12)
    stop = EarlyStopping("meta_loss_epoch", patience=2, min_delta=0.5)
    trainer = fit(module, OneBowl(), stop, max_steps=1000, limit_train_batches=4)
    assert trainer.global_step == 12
