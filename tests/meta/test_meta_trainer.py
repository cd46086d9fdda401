from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_lopt import PES, AdamRule, FullES, MetaTrainer, ResidualRule, SGDRule, TaskDataModule
from lightning_lopt.meta import NRES, ESSingle, TruncatedBackprop, TruncatedES
from lightning_lopt.meta.groups import Group
from lightning_lopt.tasks import ImageMLP, QuadraticFamily

IN_EVERY_RUN = PES, TruncatedBackprop


def fit(path, estimator, max_steps, ckpt=None, rule=None, callbacks=(), **settings):
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
        callbacks=[ModelCheckpoint(path, every_n_train_steps=3, save_top_k=-1, filename="{step}"), *callbacks],
    )
    trainer.fit(module, TaskDataModule(family), ckpt_path=ckpt)
    return module, trainer


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(estimator, id=estimator.name, marks=() if type(estimator) in IN_EVERY_RUN else pytest.mark.slow)
        for estimator in (
            PES(4, pairs=2),
            FullES(pairs=2),
            NRES(4, pairs=2),
            ESSingle(4, pairs=2),
            TruncatedES(4, pairs=2, shaping="rank"),
            TruncatedBackprop(4, runs=2, clip=1.0),
        )
    ],
)
def test_stop_and_resume_is_no_stop(tmp_path, estimator):
    straight, trainer = fit(tmp_path, estimator, 8)
    resumed, again = fit(tmp_path / "again", estimator, 8, ckpt=tmp_path / "step=3.ckpt")
    for name, value in straight.rule.named_parameters():
        assert torch.equal(value, dict(resumed.rule.named_parameters())[name]), name
    for a, b in zip(straight.rank_groups, resumed.rank_groups, strict=True):
        assert a.starts == b.starts
        a, b = a.state_dict(), b.state_dict()
        assert tensors_of(a).keys() == tensors_of(b).keys()
        assert all(torch.equal(value, tensors_of(b)[name]) for name, value in tensors_of(a).items())
        plain = [{key: value for key, value in one.items() if isinstance(value, int | str)} for one in (a, b)]
        assert plain[0] == plain[1]
    a, b = (tensors_of(one.optimizers[0].state_dict()["state"]) for one in (trainer, again))
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("shown", [True, False])
def test_only_a_progress_bar_asks_for_the_meta_loss_at_each_step(tmp_path, shown):
    trainer = L.Trainer(
        max_steps=2, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=shown
    )
    trainer.fit(MetaTrainer(AdamRule(), PES(4, pairs=2), groups=2, horizons=9), TaskDataModule("quadratic"))
    assert set(trainer.progress_bar_metrics) == ({"meta_loss", "inner_steps_per_second"} if shown else set())


def tensors_of(tree, path=()):
    """The tensors of nested dictionaries by path."""
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    if not isinstance(tree, dict):
        return {}
    return {key: value for name, branch in tree.items() for key, value in tensors_of(branch, (*path, name)).items()}


def test_a_checkpoint_holds_no_noise(tmp_path):
    """It holds one float for each parameter and state entry of each inner run, and what Lightning adds for θ."""
    module, _ = fit(tmp_path, PES(4, pairs=2), 3)
    groups = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["meta_training"]["groups"]
    assert [group["number"] for group in groups] == [0, 1]
    for group in groups:
        assert set(group) == {
            "number",
            "starts",
            "task",
            "params",
            "tensors",
            "shared",
            "step",
            "horizon",
            "truncations",
        }
        assert all(len(value) == 4 for value in tensors_of(group).values())
    theta = sum(value.numel() for value in module.rule.parameters())
    assert all(value.numel() != 2 * theta for group in groups for value in tensors_of(group).values())


def test_a_checkpoint_holds_nothing_of_runs_that_are_finished(tmp_path):
    fit(tmp_path, FullES(pairs=2), 3)
    groups = torch.load(tmp_path / "step=3.ckpt", weights_only=True)["meta_training"]["groups"]
    assert groups == [{"number": 0, "starts": 3}, {"number": 1, "starts": 3}]


def test_saving_right_after_loading_loses_nothing(tmp_path):
    class SaveAtOnce(Callback):
        def on_train_start(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    fit(tmp_path, PES(4, pairs=2), 3)
    fit(tmp_path, PES(4, pairs=2), 4, tmp_path / "step=3.ckpt", callbacks=[SaveAtOnce()])
    first, again = (
        torch.load(tmp_path / name, weights_only=True)["meta_training"] for name in ("step=3.ckpt", "again.ckpt")
    )
    assert again["outer_step"] == 3
    assert [group["step"] for group in again["groups"]] == [group["step"] for group in first["groups"]]
    a, b = (tensors_of(dict(enumerate(one["groups"]))) for one in (first, again))
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_groups_differ():
    groups = [Group(number, 3, 0, starts) for number in range(3) for starts in (1, 2)]
    assert len({group.run_seed for group in groups}) == 6


def test_learns_a_better_learning_rate(tmp_path):
    rule = SGDRule(0.003, momentum=0.0)
    module, _ = fit(tmp_path, FullES(pairs=4, sigma=0.1), 60, rule=rule, warmup_steps=1)
    assert module.rule.log_lr.exp() > 0.0034


def test_resuming_with_other_settings_is_refused(tmp_path):
    fit(tmp_path, PES(4, pairs=1), 3)
    for estimator, settings, sentence in (
        (PES(4, pairs=1), {"groups": 3}, "holds 2 groups"),
        (PES(4, pairs=1), {"groups": 2, "seed": 1}, "seed=0"),
        (NRES(4, pairs=1), {"groups": 2}, "estimator='pes'"),
        (PES(4, pairs=2), {"groups": 2}, "2 inner runs"),
        (PES(4, pairs=1), {"groups": 2, "family": QuadraticFamily()}, "task"),
    ):
        family = settings.pop("family", ImageMLP(depths=(1,), widths=(8,), batch_sizes=(8,)))
        module = MetaTrainer(ResidualRule(), estimator, **settings)
        trainer = L.Trainer(max_steps=4, logger=False, accelerator="cpu", enable_progress_bar=False)
        with pytest.raises(ValueError, match=sentence):
            trainer.fit(module, TaskDataModule(family), ckpt_path=tmp_path / "step=3.ckpt")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"groups": 0}, "groups"),
        ({"horizons": (5, 2)}, "horizons"),
        ({"horizons": 20_001}, "20000"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_bad_settings_get_one_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        MetaTrainer(AdamRule(), PES(), **settings)


def test_a_checkpoint_of_an_older_revision_goes_on():
    """``checkpoints/adam_quadratic.ckpt`` was written after 5 outer steps by revision 495cce1, which went on to these
    numbers after 9."""
    module = MetaTrainer(AdamRule(0.01), PES(4, pairs=2), groups=2, horizons=(4, 20), lr=0.01)
    trainer = L.Trainer(
        max_steps=9,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    checkpoint = Path(__file__).parent / "checkpoints" / "adam_quadratic.ckpt"
    trainer.fit(module, TaskDataModule(QuadraticFamily()), ckpt_path=checkpoint)
    assert float(module.rule.log_lr.detach()) == pytest.approx(-4.597172737121582, rel=1e-6)
    assert float(trainer.callback_metrics["meta_loss"]) == pytest.approx(0.8166128993034363, rel=1e-4)
    assert [(group.starts, group.runs.step, group.runs.horizon) for group in module.rank_groups] == [
        (3, 9, 9),
        (4, 12, 20),
    ]
