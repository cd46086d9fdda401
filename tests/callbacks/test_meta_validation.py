import json
import os
from unittest.mock import Mock

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_lopt import FullES, MetaTrainer, MetaValidation, SGDRule, TaskDataModule, load_rule
from lightning_lopt.callbacks import meta_validation
from lightning_lopt.evaluation.baselines import Baselines
from lightning_lopt.evaluation.suites import Problem
from lightning_lopt.tasks import Quadratic, QuadraticFamily


def problems(curvature=1.0):
    return [
        Problem("round", Quadratic(torch.tensor([curvature, curvature])), 12),
        Problem("long", Quadratic(torch.tensor([curvature, 0.5 * curvature])), 30),
    ]


def fit(folder, *, steps=20, lr=0.05, callbacks=(), ckpt=None, logger=False, held_out=None, every=10, **options):
    rule = SGDRule(lr, momentum=0.0)
    module = MetaTrainer(rule, FullES(pairs=8, sigma=0.1), groups=1, horizons=(10, 20), lr=0.05, warmup_steps=1)
    validation = MetaValidation(
        held_out or problems(), folder, every_n_steps=every, baselines=Baselines(seeds=1), **options
    )
    trainer = L.Trainer(
        max_steps=steps,
        logger=logger,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        callbacks=[validation, *callbacks],
    )
    family = QuadraticFamily(dims=(2,), conditions=(1.0,), noises=(0.0,))
    trainer.fit(module, TaskDataModule(family), ckpt_path=ckpt)
    return validation, trainer, rule


def test_keeps_the_best_rule_and_logs_its_score(tmp_path):
    """A larger learning rate helps on these bowls; meta-training finds it, and the last rule is the best."""
    validation, trainer, rule = fit(tmp_path / "best")
    assert [entry["step"] for entry in validation.history] == [10, 20]
    assert validation.history[1]["score"] < validation.history[0]["score"] < 0
    assert validation.best == validation.history[1]
    saved = load_rule(tmp_path / "best")
    assert torch.equal(saved.log_lr, rule.log_lr)
    meta_training = json.loads((tmp_path / "best" / "config.json").read_text())["meta_training"]
    trained_on = {"families": ["quadratic"], "data": [], "horizons": [10, 20], "chosen_on": ["round", "long"]}
    assert meta_training == {"outer_step": 20, "meta_validation": validation.history[1]["score"]} | trained_on
    assert float(trainer.callback_metrics["meta_validation/score"]) == pytest.approx(validation.history[1]["score"])
    assert float(trainer.callback_metrics["meta_validation/round/train"]) < 0


def test_score_is_the_mean_log_ratio_in_closed_form(tmp_path):
    """Plain gradient descent: L_T = L_0 Π (1 - η h)^2T, the same for training and validation."""
    validation, _, rule = fit(tmp_path / "best", steps=10)
    ratios = []
    for problem in problems():
        levels = [
            float(problem.task.expected_losses(lr, problem.horizon)[-1]) / problem.task.loss_scale + 0.01
            for lr in (float(rule.log_lr.detach().exp()), 0.05)
        ]
        ratios.append(torch.tensor(levels[0] / levels[1]).log())
    assert validation.history[0]["score"] == pytest.approx(float(sum(ratios) / 2), rel=1e-4)


def test_a_rule_that_got_worse_is_not_kept_and_overfitting_is_flagged(tmp_path):
    """Held-out bowls are 40 times as steep: what helps in meta-training diverges there."""
    with pytest.warns(UserWarning, match="meta-overfitting"):
        validation, trainer, _ = fit(
            tmp_path / "best", lr=0.045, steps=40, every=10, patience=2, held_out=problems(curvature=40.0)
        )
    assert validation.best is None
    assert float(trainer.callback_metrics["meta_validation/overfitting"]) == 1.0
    assert float(load_rule(tmp_path / "best").log_lr.exp()) == pytest.approx(0.045)


@pytest.mark.parametrize(("given", "device"), [(None, "meta"), (Baselines(seeds=1, device="cpu"), "cpu")])
def test_measurements_are_made_on_the_device_of_the_module_unless_one_is_given(tmp_path, monkeypatch, given, device):
    """Also those of the rule at the start, which was copied before the module was moved."""

    def compared(rules, problems, *, baselines, against):
        raise InterruptedError(baselines.device)

    monkeypatch.setattr(meta_validation, "compare", compared)
    monkeypatch.setattr(MetaTrainer, "device", torch.device("meta"))
    callback = MetaValidation(problems(), tmp_path, baselines=given)
    module, trainer = MetaTrainer(SGDRule(), FullES()), Mock(callbacks=[])
    callback.setup(trainer, module, "fit")
    with pytest.raises(InterruptedError) as asked:
        callback._measure(trainer, module)
    assert str(asked.value) == device


def test_a_full_disk_does_not_end_meta_training(tmp_path, monkeypatch):
    """The rule that could not be written is not taken for the best one, and a later one is written again."""
    written, real = [], os.fsync

    def fsync(descriptor):
        written.append(descriptor)
        if len(written) == 4:  # after the three files of the rule at the start
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(UserWarning, match=r"better rule at outer step 10 and lost it: .* No space left on device"):
        validation, _, rule = fit(tmp_path / "best", steps=30)
    assert [entry["step"] for entry in validation.history] == [20, 30]
    assert torch.equal(load_rule(tmp_path / "best").log_lr, rule.log_lr)


def test_stop_and_resume_is_no_stop(tmp_path):
    save = ModelCheckpoint(tmp_path, every_n_train_steps=15, save_top_k=-1, filename="{step}")
    straight, _, rule = fit(tmp_path / "a", steps=40, callbacks=[save])
    resumed, _, other = fit(tmp_path / "b", steps=40, ckpt=tmp_path / "step=15.ckpt")
    assert resumed.history == straight.history
    assert torch.equal(rule.log_lr, other.log_lr)
    assert torch.equal(load_rule(tmp_path / "a").log_lr, load_rule(tmp_path / "b").log_lr)


def test_the_average_of_theta_is_measured_too(tmp_path):
    validation, trainer, _ = fit(tmp_path / "best", callbacks=[EMAWeightAveraging(decay=0.9)])
    scores = {name: float(trainer.callback_metrics[f"meta_validation/score_{name}"]) for name in ("theta", "average")}
    assert scores["theta"] < scores["average"] < 0  # the average lags behind
    assert validation.history[-1]["score"] == pytest.approx(scores["theta"])


@pytest.mark.slow
def test_files_beside_the_csv_log(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="log")
    fit(tmp_path / "best", logger=logger)
    table = (tmp_path / "log" / "meta_validation.md").read_text()
    assert "After 20 outer steps" in table
    assert "| round |" in table
    assert "tuned AdamW" in table
    assert "unseen families (2)" in table  # the problems name no family
    for picture in ("curves", "profile"):
        assert (tmp_path / "log" / f"meta_validation_{picture}.png").read_bytes()[:4] == b"\x89PNG"
    assert "meta_validation/score" in (tmp_path / "log" / "metrics.csv").read_text()


def test_weights_and_biases_offline_run_holds_history_table_picture_and_artifact(tmp_path, monkeypatch, wandb_run):
    for variable, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_CONFIG_DIR", "config")):
        monkeypatch.setenv(variable, str(tmp_path / place))
    (tmp_path / "logs").mkdir()
    fit(tmp_path / "best", logger=WandbLogger(offline=True, save_dir=tmp_path / "logs", project="test"))
    import wandb

    wandb.finish()
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    history, artifacts = wandb_run(run)
    scores = [row["meta_validation/score"] for row in history if "meta_validation/score" in row]
    assert len(scores) == 2
    assert scores[1] < scores[0] < 0
    for key, kind in (("table", "table-file"), ("numbers", "table-file"), ("curves", "images/separated")):
        entry = f"meta_validation/{key}/_type"
        assert [row[entry] for row in history if entry in row] == [kind] * 2
    assert "rule" in artifacts
    tables = [json.loads(path.read_text()) for path in (run / "files").rglob("*.table.json")]
    losses = [table for table in tables if table["columns"] == ["problem", "split", "start", "theta", "tuned AdamW"]]
    assert len(losses) == 2
    assert {"round", "long"} == {row[0] for row in losses[0]["data"]}
    assert list((run / "files").rglob("*.png"))


def test_bad_settings_get_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps"):
        MetaValidation(problems(), tmp_path, every_n_steps=0)
    with pytest.raises(ValueError, match="at least one problem"):
        MetaValidation([], tmp_path)
    with pytest.raises(ValueError, match="names that differ"):
        fit(tmp_path, held_out=problems() + problems())
    with pytest.raises(ValueError, match="beside a MetaTrainer"):
        MetaValidation(problems(), tmp_path).setup(L.Trainer(logger=False), L.LightningModule(), "fit")


@pytest.mark.slow
def test_runs_several_times_as_long_as_those_of_meta_training(tmp_path):
    """Very small problems join the others, are solved and logged like them; a second setup adds nothing."""
    pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")
    validation, trainer, _ = fit(tmp_path / "best", steps=10, horizon_factors=(0.25, 2))
    names = [f"{problem}-{steps}" for steps in (5, 40) for problem in ("digits-noisy", "synthetic-values")]
    assert [problem.name for problem in validation.problems] == ["round", "long", *names]
    for name in names:
        assert f"meta_validation/{name}/valid" in trainer.callback_metrics
    validation.setup(trainer, trainer.lightning_module, "fit")
    assert len(validation.problems) == 6
    with pytest.raises(ValueError, match="horizon_factors must be positive"):
        MetaValidation(problems(), tmp_path, horizon_factors=(0,))
