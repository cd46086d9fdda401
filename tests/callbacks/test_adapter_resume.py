"""Stop in the middle of an epoch and go on, with a loader that remembers where it was."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_fits import BATCHES, RULE, ManualModule, Module, StatefulLoader, fit

from lightning_lopt import LearnedOptimizerAdapter


@pytest.mark.parametrize("adapter", [LearnedOptimizerAdapter, lambda: LearnedOptimizerAdapter(RULE)], ids=["", "swap"])
@pytest.mark.parametrize(
    ("kind", "settings", "save_at"),
    [(Module, {}, 4), (Module, {"accumulate_grad_batches": 2}, 2), (ManualModule, {}, 4)],
    ids=["automatic", "accumulation", "manual"],
)
def test_mid_epoch_stop_and_resume_is_no_stop(tmp_path, kind, settings, save_at, adapter):
    straight = kind()
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=save_at, filename="{step}")
    trainer = fit(straight, callbacks=[save], adapter=adapter(), data=StatefulLoader(), **settings)
    resumed = kind()
    again = fit(resumed, adapter=adapter(), data=StatefulLoader(), ckpt=tmp_path / f"step={save_at}.ckpt", **settings)
    assert resumed.losses == straight.losses[4:]  # the horizon was not asked for before the loader was restored
    assert again.global_step == trainer.global_step
    assert again.optimizers[0].total_steps == trainer.optimizers[0].total_steps == trainer.global_step
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


def test_a_checkpoint_holds_plain_data_only(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="one")
    module = Module()
    fit(module, epochs=1, callbacks=[save])
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert saved["callbacks"]["LearnedOptimizerAdapter"] == {
        "steps_before": 0,
        "horizons": {"end": BATCHES, "start": 0, "steps": BATCHES},
    }
    assert saved["optimizer_states"][0]["param_groups"][0]["total_steps"] == BATCHES


def test_a_checkpoint_of_another_optimizer_ends_the_fit_with_a_sentence(tmp_path):
    def adamw(module):
        return torch.optim.AdamW(module.parameters())

    save = ModelCheckpoint(tmp_path, filename="one")
    fit(Module(adamw), epochs=1, callbacks=[save], adapter=Callback())
    with pytest.raises(ValueError, match="written by another optimizer or rule"):
        fit(Module(), ckpt=tmp_path / "one.ckpt")
    swapped = Module(adamw)
    with pytest.raises(ValueError, match="written by another optimizer or rule"):
        fit(swapped, ckpt=tmp_path / "one.ckpt", adapter=LearnedOptimizerAdapter(RULE))
    assert "configure_optimizers" not in vars(swapped)
