import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lopt import PES, AdamRule, FullES, MetaTrainer, ResidualRule, SGDRule, TaskDataModule
from lightning_lopt.tasks import ImageMLP


def fit(path, estimator, max_steps, ckpt=None, rule=None, **settings):
    torch.manual_seed(0)
    module = MetaTrainer(rule or ResidualRule(), estimator, groups=2, horizons=(4, 20), lr=0.01, **settings)
    family = ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,))
    trainer = L.Trainer(
        max_steps=max_steps,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(path, every_n_train_steps=3, save_top_k=-1, filename="{step}")],
    )
    trainer.fit(module, TaskDataModule(family), ckpt_path=ckpt)
    return module, trainer


@pytest.mark.parametrize("estimator", [PES(4, pairs=2), FullES(pairs=2)], ids=lambda estimator: estimator.name)
def test_stop_and_resume_is_no_stop(tmp_path, estimator):
    straight, trainer = fit(tmp_path, estimator, 8)
    resumed, _ = fit(tmp_path / "again", estimator, 8, ckpt=tmp_path / "step=3.ckpt")
    for name, value in straight.rule.named_parameters():
        assert torch.equal(value, dict(resumed.rule.named_parameters())[name]), name
    for a, b in zip((g.runs for g in straight.own_groups), (g.runs for g in resumed.own_groups), strict=True):
        assert (a.task.name, a.step, a.horizon) == (b.task.name, b.step, b.horizon)
        assert all(torch.equal(value, b.params[name]) for name, value in a.params.items())
    assert {"meta_loss", "inner_steps_per_second"} <= set(trainer.progress_bar_metrics)


def test_learns_a_better_learning_rate(tmp_path):
    rule = SGDRule(0.003, momentum=0.0)
    module, _ = fit(tmp_path, FullES(pairs=4, sigma=0.1), 60, rule=rule, warmup_steps=1)
    assert module.rule.log_lr.exp() > 0.0034


def test_resuming_with_other_settings_is_refused(tmp_path):
    fit(tmp_path, PES(4, pairs=1), 3)
    module = MetaTrainer(ResidualRule(), PES(4, pairs=1), groups=3)
    trainer = L.Trainer(max_steps=4, logger=False, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match="groups"):
        trainer.fit(module, TaskDataModule(ImageMLP()), ckpt_path=tmp_path / "step=3.ckpt")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"groups": 0}, "groups"), ({"horizons": (5, 2)}, "horizons"), ({"lr": float("nan")}, "lr")],
)
def test_bad_settings_get_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MetaTrainer(AdamRule(), PES(), **settings)
