"""OnlineMetaTraining inside real fits: what it leaves alone, what it improves, how it stops, resumes and hands over."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from small_fits import ManualModule, Module, StatefulLoader, fit, loader
from torch import nn
from torch.utils.data import DataLoader

import lightning_lopt
from lightning_lopt import (
    AdamRule,
    LearnedOptimizer,
    LearnedOptimizerAdapter,
    MetaTraining,
    OnlineMetaTraining,
    ResidualRule,
    load_rule,
)
from lightning_lopt.meta.search import Search, SequentialTest, default_search

SMALL = {"inner_steps": 2, "held_out": 1, "every_n_steps": 1, "max_share": 1.0}


def rule():
    return ResidualRule(direction=False, controller=False)


def adapting(tmp_path, **arguments):
    return OnlineMetaTraining(rule(), folder=tmp_path / "adapted", **{**SMALL, **arguments})


class Dropping(Module):
    """With dropout, so that the random numbers of the fit matter."""

    def __init__(self):
        super().__init__(lambda module: None)
        self.net.insert(2, nn.Dropout(0.3))


def trained(callback, module=None, seed=0, **settings):
    torch.manual_seed(seed)
    module = module or Dropping()
    torch.manual_seed(seed)
    trainer = fit(module, adapter=callback, epochs=settings.pop("epochs", 4), **settings)
    return module, trainer


def parameters(module):
    return [param.detach().clone() for param in module.parameters()]


def same(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}], ids=["", "accumulation"])
def test_a_search_that_does_not_move_leaves_the_fit_alone(tmp_path, settings):
    plain, _ = trained(LearnedOptimizerAdapter(rule()), **settings)
    callback = adapting(tmp_path, search=partial(default_search, sigma=1e-12))  # too small for float32 to feel
    watched, _ = trained(callback, **settings)
    assert callback.search.rounds >= 1
    assert watched.losses == plain.losses
    assert same(parameters(plain), parameters(watched))


def test_the_fit_goes_on_with_what_was_learned(tmp_path):
    given = rule()
    start = given.constants.log_step_size.detach().clone()
    callback = OnlineMetaTraining(given, folder=tmp_path / "adapted", **SMALL)
    plain, _ = trained(LearnedOptimizerAdapter(given))
    module, trainer = trained(callback)
    used = trainer.optimizers[0].rule.constants.log_step_size.detach()
    assert callback.search.rounds >= 2
    assert torch.equal(used, callback.search.chosen["constants.log_step_size"])
    assert not same(parameters(plain), parameters(module))
    assert torch.equal(given.constants.log_step_size.detach(), start)  # somebody else's rule


def test_the_rule_of_the_modules_own_optimizer_is_adapted(tmp_path):
    module = Module(lambda module: LearnedOptimizer(module.parameters(), AdamRule(1e-2)))  # names are not the module's
    callback = OnlineMetaTraining(folder=tmp_path / "adapted", **SMALL)
    _, trainer = trained(callback, module)
    assert callback.search.rounds >= 2
    assert float(trainer.optimizers[0].rule.log_lr.detach()) != pytest.approx(math.log(1e-2))
    assert isinstance(load_rule(tmp_path / "adapted"), AdamRule)


def test_groups_frozen_parameters_and_clipping(tmp_path):
    def configured(module):
        first, last = module.net[0], module.net[2]
        first.bias.requires_grad_(False)
        groups = [{"params": [first.weight], "lr": 0.5}, {"params": list(last.parameters()), "weight_decay": 0.1}]
        return LearnedOptimizer(groups, rule())

    for algorithm in ("norm", "value"):
        callback = OnlineMetaTraining(folder=tmp_path / algorithm, **SMALL)
        trained(callback, Module(configured), gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
        assert callback.search.rounds >= 2


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 9, 14])
def test_stop_and_resume_is_no_stop(tmp_path, stop):
    """In the middle of recording, and after several rounds."""
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    first = adapting(tmp_path)
    straight, _ = trained(first, Module(lambda module: None), data=StatefulLoader(), callbacks=[save])
    second = adapting(tmp_path)
    path = tmp_path / f"step={stop}.ckpt"
    resumed, _ = trained(second, Module(lambda module: None), data=StatefulLoader(), ckpt=path)
    assert torch.load(path, weights_only=True)["callbacks"]["MetaTraining"]["spent"] >= 0
    assert same(parameters(straight), parameters(resumed))
    assert first.search.rounds == second.search.rounds >= 2
    assert torch.equal(*(c.search.theta["constants.log_step_size"] for c in (first, second)))
    assert first.search.evidence == second.search.evidence


@pytest.mark.slow
def test_two_ranks_learn_the_same_and_resume(tmp_path):
    """In the middle of recording, too: each rank goes on with the batches it had."""
    script = Path(__file__).with_name("two_ranks_online_meta_training.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(lightning_lopt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = {
        name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)] for name in ("straight", "resumed")
    }
    one, other = reports["straight"]
    assert one["recorded"] != other["recorded"]
    assert one["rounds"] >= 2
    for report in (other, *reports["resumed"]):
        assert torch.equal(one["theta"], report["theta"])
        assert same(one["parameters"], report["parameters"])
    assert not torch.equal(one["theta"], one["start"])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rounds_keep_to_the_budget(tmp_path, share):
    callback = adapting(tmp_path, max_share=share)
    _, trainer = trained(callback, epochs=10)
    assert 0 < callback.spent <= share * trainer.global_step
    assert callback.spent == pytest.approx(3 * (2 + 1 / 3) + (callback.search.rounds - 1) * 4 * (2 + 1 / 3))
    assert callback.time_share > 0


def test_a_fit_too_short_for_a_round_says_so(tmp_path):
    with pytest.warns(UserWarning, match="OnlineMetaTraining has no round in this fit"):
        _, trainer = trained(OnlineMetaTraining(rule(), folder=tmp_path / "adapted"))
    assert load_rule(tmp_path / "adapted").config == trainer.optimizers[0].rule.config


class Sines(Module):
    """Sines of high frequency (SIREN), for which the steps of the hand-designed rule are far too long."""

    def __init__(self):
        super().__init__(lambda module: None)
        draws = torch.Generator().manual_seed(0)
        bounds = {(2, 32): 0.5, (32, 32): math.sqrt(6 / 32) / 30, (32, 1): 0.2}
        weights = [bound * (2 * torch.rand(*shape, generator=draws) - 1) for shape, bound in bounds.items()]
        self.weights = nn.ParameterList(weights)
        self.net = None

    def training_step(self, batch, batch_idx):
        hidden = torch.sin(30 * batch[0] @ self.weights[0])
        hidden = torch.sin(30 * hidden @ self.weights[1])
        return (hidden @ self.weights[2] - batch[1]).square().mean()


def smooth_signal(steps):
    xs = torch.rand(steps, 64, 2, generator=torch.Generator().manual_seed(2))
    return DataLoader([(x, torch.sin(9 * x[:, :1] * x[:, 1:] + 3 * x[:, :1])) for x in xs], batch_size=None)


@pytest.mark.slow
def test_a_far_model_ends_lower(tmp_path):
    batches, finals = smooth_signal(500), {}
    for name, callback in (
        ("start", LearnedOptimizerAdapter(rule())),
        ("adapted", OnlineMetaTraining(rule(), folder=tmp_path / "adapted", max_share=0.5)),
    ):
        module, _ = trained(callback, Sines(), data=batches, epochs=1)
        with torch.no_grad():
            finals[name] = float(torch.stack([module.training_step(batch, 0) for batch in batches]).mean())
    assert finals["adapted"] < 0.5 * finals["start"]
    assert callback.search.improving
    saved = load_rule(tmp_path / "adapted")
    assert torch.equal(saved.constants.log_step_size.detach(), callback.search.theta["constants.log_step_size"])
    assert float(saved.constants.log_step_size.detach().mean()) < math.log(0.02) - 0.2


@pytest.mark.slow
def test_without_clear_evidence_a_calibrated_rule_trains_as_if_alone(tmp_path):
    """Steps are too long by far here, and the rule's own calibration sees to that."""
    calibrated = ResidualRule(direction=False, controller=False, calibrated=True)
    batches = smooth_signal(500)
    alone, _ = trained(LearnedOptimizerAdapter(calibrated), Sines(), data=batches, epochs=1)
    callback = OnlineMetaTraining(calibrated, folder=tmp_path / "adapted", max_share=0.3)
    with pytest.warns(UserWarning, match="the saved rule is that of the start"):
        watched, _ = trained(callback, Sines(), data=batches, epochs=1)
    assert callback.search.rounds == 5
    assert same(parameters(alone), parameters(watched))
    saved = load_rule(tmp_path / "adapted")
    assert torch.equal(saved.constants.log_weight_decay, calibrated.constants.log_weight_decay)


@pytest.mark.slow
def test_too_much_weight_decay_of_a_calibrated_rule_is_found(tmp_path):
    given = ResidualRule(direction=False, controller=False, calibrated=True, weight_decay=3.0)
    batches, finals = smooth_signal(400), {}
    for name, callback in (
        ("alone", LearnedOptimizerAdapter(given)),
        ("adapted", OnlineMetaTraining(given, folder=tmp_path / "adapted", max_share=1.0, every_n_steps=1)),
    ):
        module, _ = trained(callback, Sines(), data=batches, epochs=1)
        with torch.no_grad():
            finals[name] = float(torch.stack([module.training_step(batch, 0) for batch in batches]).mean())
    assert callback.search.rounds == 7
    assert finals["adapted"] < 0.9 * finals["alone"]
    saved = load_rule(tmp_path / "adapted")
    torch.testing.assert_close(saved.constants.log_weight_decay, given.constants.log_weight_decay - 1.1)
    assert torch.equal(saved.constants.log_step_size, given.constants.log_step_size)


class Validated(Dropping):
    def validation_step(self, batch, batch_idx):
        pass


def test_pilots_are_measured_on_validation_batches_and_leave_the_fit_alone(tmp_path):
    """Where these have the structure of training batches."""

    def data(structure):
        draws = torch.Generator().manual_seed(3)
        examples = [structure(9 * torch.randn(5, generator=draws), torch.tensor(0)) for _ in range(12)]
        return {"train_dataloaders": loader(), "val_dataloaders": DataLoader(examples, batch_size=3, shuffle=True)}

    structures = {"same": lambda x, y: (x, y), "other": lambda x, y: {"x": x, "y": y}}
    plain, _ = trained(LearnedOptimizerAdapter(rule()), Validated(), data=data(structures["same"]))
    losses = {}
    for name, structure in structures.items():
        callback = adapting(tmp_path, search=partial(default_search, sigma=1e-12))
        watched, trainer = trained(callback, Validated(), data=data(structure))
        assert same(parameters(plain), parameters(watched))
        assert callback.search.rounds >= 2
        losses[name] = float(trainer.callback_metrics["meta_training/loss"])
    assert losses["same"] != losses["other"]


def test_what_was_no_improvement_is_handed_back(tmp_path):
    class Against(OnlineMetaTraining):
        """The evidence turns at the end."""

        def on_train_end(self, trainer, pl_module):
            self.search.evidence = 0.5
            self._use(self.search.chosen)

    callback = Against(rule(), folder=tmp_path / "adapted", **SMALL)
    with pytest.warns(UserWarning, match="the saved rule is that of the start"):
        trained(callback)
    saved = load_rule(tmp_path / "adapted")
    assert torch.equal(saved.constants.log_step_size, rule().constants.log_step_size)
    record = json.loads((tmp_path / "adapted" / "config.json").read_text())["meta_training"]
    assert record["handed_back"] is True
    assert record["adapted_to"] == "Dropping"


class Unusual(Module):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * 1.0 if loss.item() > 0 else loss  # a branch on a value: vmap cannot


def test_a_step_that_vmap_cannot_map_is_looped(tmp_path):
    callback = adapting(tmp_path)
    trained(callback, Unusual(lambda module: None))
    assert callback.search.rounds >= 2


def ragged():
    draws = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 5, generator=draws), torch.randint(3, (n,), generator=draws)) for n in range(1, 20)]
    return DataLoader(batches, batch_size=None)


def test_what_cannot_be_a_task_ends_the_rounds_and_not_the_fit(tmp_path):
    data = ragged()
    with pytest.warns(UserWarning, match="OnlineMetaTraining stops here, and the fit goes on: .*have the same shapes"):
        _, trainer = trained(adapting(tmp_path), Module(lambda module: None), data=data)
    assert trainer.global_step == 4 * len(data)
    assert load_rule(tmp_path / "adapted").config == rule().config


def two(module):
    return [LearnedOptimizer(module.net[0], rule()), LearnedOptimizer(module.net[2], rule())]


@pytest.mark.parametrize(
    ("module", "settings", "says"),
    [
        (lambda: ManualModule(lambda module: LearnedOptimizer(module, rule())), {}, "manual optimization"),
        (lambda: Module(lambda module: torch.optim.SGD(module.parameters(), 0.1)), {}, "found no LearnedOptimizer"),
        (lambda: Module(lambda module: LearnedOptimizer(module, rule())), {"precision": "bf16-true"}, "float32 param"),
    ],
    ids=["manual", "not-learned", "half"],
)
def test_fits_it_cannot_follow_are_refused_in_one_sentence(tmp_path, module, settings, says):
    with pytest.raises(ValueError, match=says):
        trained(OnlineMetaTraining(folder=tmp_path, **SMALL), module(), **settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"max_share": 0.0}, "max_share must lie"),
        ({"inner_steps": 0}, "inner_steps must be"),
        ({"held_out": 0}, "held_out must be"),
        ({"every_n_steps": 0}, "every_n_steps must be"),
        ({"total_steps": 0}, "total_steps must be"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        OnlineMetaTraining("base", **arguments)


def test_the_caller_chooses_the_search(tmp_path):
    """Also one that is made for other rules."""
    callback = adapting(tmp_path, search=partial(SequentialTest, entries=("*log_step_size",), sigma=0.3))
    trained(callback, epochs=8)
    assert type(callback.search) is SequentialTest
    assert callback.search.rounds >= 1
    assert list(callback.search.start) == ["constants.log_step_size"]


@pytest.mark.parametrize("search", [None, SequentialTest], ids=["default", "search"])
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"pairs": 8}, "partial(Search, pairs=8), of lightning_lopt.meta.search, or leave it out for a rule that cal"),
        ({"seed": 3}, "partial(Search, seed=3), of lightning_lopt.meta.search, or leave it out for a rule that cal"),
        ({"sigma": 0.3}, "partial(default_search, sigma=0.3), of lightning_lopt.meta.search."),
        ({"entries": ("*log_lr",)}, "partial(default_search, entries=('*log_lr',)), of lightning_lopt.meta.search."),
        ({"sigma": 0.3, "pairs": 2}, "partial(Search, sigma=0.3, pairs=2), of lightning_lopt.meta.search, or leave"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_argument_of_a_search_belongs_to_the_search(search, arguments, advice):
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    message = f"OnlineMetaTraining got {given}, which the search takes; pass search=functools.{advice}"
    with pytest.raises(TypeError, match=re.escape(message)):
        OnlineMetaTraining("base", search=search, **arguments)


def test_an_unknown_argument_has_the_error_of_python():
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'paris'"):
        OnlineMetaTraining("base", paris=1)


def test_the_default_search_takes_what_both_searches_take():
    for made, kind in ((AdamRule(1e-2), Search), (load_rule("base"), SequentialTest)):
        search = default_search(made, entries=("*log_*",), sigma=0.3)
        assert type(search) is kind
        assert search.sigma == 0.3
        assert len(search.start) > 0


def test_the_former_name():
    assert MetaTraining is OnlineMetaTraining
    assert OnlineMetaTraining("base").state_key == "MetaTraining"  # as in checkpoints


class Watch(Callback):
    """The logged numbers, each time they change."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = {name: float(value) for name, value in trainer.callback_metrics.items() if "meta_training" in name}
        if now and now not in self.seen:
            self.seen.append(now)


def test_numbers_reach_the_logger(tmp_path):
    watch, callback = Watch(), adapting(tmp_path)
    trained(callback, callbacks=[watch], logger=CSVLogger(tmp_path, name="", version="log"))
    assert [row["meta_training/rounds"] for row in watch.seen] == list(range(1, callback.search.rounds + 1))
    assert watch.seen[0]["meta_training/ahead"] == 0.0
    assert watch.seen[-1]["meta_training/evidence"] == pytest.approx(callback.search.evidence)
    assert "meta_training/time_share" in (tmp_path / "log" / "metrics.csv").read_text()


def test_the_rule_is_an_artifact_in_weights_and_biases(tmp_path, monkeypatch, wandb_run):
    for variable, place in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_CONFIG_DIR", "config")):
        monkeypatch.setenv(variable, str(tmp_path / place))
    (tmp_path / "logs").mkdir()
    trained(adapting(tmp_path), logger=WandbLogger(offline=True, save_dir=tmp_path / "logs", project="test"))
    import wandb

    wandb.finish()
    (run,) = (tmp_path / "logs" / "wandb").glob("offline-run-*")
    history, artifacts = wandb_run(run)
    assert "adapted_rule" in artifacts
    assert {"meta_training/evidence", "meta_training/rounds"} <= {key for row in history for key in row}
