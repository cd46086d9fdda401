"""OnlineMetaTraining works on awkward modules, leaves streams and folders alone, and never ends a fit."""

import os
import warnings
from functools import partial

import pytest
import torch
from awkward_modules import AWKWARD, BATCHES, Breaks, Plain, examples, loader, trainer_for
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from small_fits import StatefulLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_lopt import AdamRule, LearnedOptimizerAdapter, OnlineMetaTraining, load_rule
from lightning_lopt.callbacks.validation_batches import ValidationBatches
from lightning_lopt.meta.search import default_search

SMALL = {"inner_steps": 2, "held_out": 1, "every_n_steps": 1, "max_share": 1.0}
EPOCHS = 3


def adapting(tmp_path, **arguments):
    return OnlineMetaTraining(AdamRule(1e-2), folder=tmp_path / "adapted", **{**SMALL, **arguments})


def fit(module, data, *callbacks, ckpt_path=None, **settings):
    trainer = trainer_for(module, callbacks=list(callbacks), **{"max_epochs": EPOCHS, **settings})
    torch.manual_seed(0)
    batches = data if isinstance(data, dict) else {"train_dataloaders": data}
    trainer.fit(module, **batches, ckpt_path=ckpt_path)
    return trainer


def parameters(module):
    return [param.detach().clone() for param in module.parameters()]


def same(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_modules_are_searched_and_train_as_without(name, tmp_path):
    build, data = AWKWARD[name]
    plain, watched = build(), build()
    fit(plain, data(), LearnedOptimizerAdapter(AdamRule(1e-2)))
    callback = adapting(tmp_path, search=partial(default_search, sigma=1e-12))  # too small for float32 to feel
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "OnlineMetaTraining stops")
        trainer = fit(watched, data(), callback)
    assert callback.search.rounds >= 2
    assert trainer.global_step == EPOCHS * BATCHES
    assert same(parameters(plain), parameters(watched))
    assert watched.trainer is trainer


def test_what_a_module_raises_ends_the_rounds_with_one_warning(tmp_path):
    callback, module, plain = adapting(tmp_path), Breaks(), Breaks()
    with pytest.warns(UserWarning, match="OnlineMetaTraining") as seen:
        trainer = fit(module, loader(), callback)
    said = [str(warning.message) for warning in seen if "stops here" in str(warning.message)]
    assert len(said) == 1
    assert "Breaks.training_step fails" in said[0]
    assert "OutOfWine: the barrel is empty" in said[0]
    assert trainer.global_step == EPOCHS * BATCHES
    assert callback.search.rounds == 0
    fit(plain, loader(), LearnedOptimizerAdapter(AdamRule(1e-2)))
    assert same(parameters(plain), parameters(module))


class Unusual:
    """What no batch should hold."""


def test_batches_that_cannot_be_kept_end_the_rounds(tmp_path):
    class Ignores(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    kept = [(*batch, Unusual()) for batch in loader()]
    batches = DataLoader(kept, batch_size=None, collate_fn=lambda batch: batch)
    callback = adapting(tmp_path)
    with pytest.warns(UserWarning, match="stops here, and the fit goes on: TypeError: a batch holds a Unusual"):
        trainer = fit(Ignores(), batches, callback)
    assert trainer.global_step == EPOCHS * BATCHES


def test_each_fit_begins_anew(tmp_path):
    callback, found = adapting(tmp_path), []
    for module in (Plain(), Breaks(), Plain()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(module, loader(), callback)
        found.append((callback.search.rounds, callback.search.evidence, callback.spent, parameters(module)))
    first, broken, second = found
    assert first[0] >= 2
    assert broken[0] == 0
    assert first[:3] == second[:3]
    assert same(first[3], second[3])


@pytest.mark.parametrize("rule", [AdamRule(1e-2), "base"])
def test_fast_dev_run_leaves_nothing_behind(tmp_path, rule):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "OnlineMetaTraining")
        fit(Plain(), loader(), OnlineMetaTraining(rule), fast_dev_run=True, default_root_dir=tmp_path)
    assert os.listdir(tmp_path) == []


class FullDisk(CSVLogger):
    def log_metrics(self, metrics, step=None):
        raise OSError("no space left on device")


def test_a_logger_or_a_disk_that_fails_is_a_warning(tmp_path):
    (tmp_path / "adapted").write_text("a file where the folder should be")
    callback = adapting(tmp_path)
    with pytest.warns(UserWarning, match="OnlineMetaTraining could not") as seen:
        trainer = fit(Plain(), loader(), callback, logger=FullDisk(tmp_path), log_every_n_steps=100)
    said = " ".join(str(warning.message) for warning in seen)
    assert "could not log its numbers (OSError: no space left on device)" in said
    assert "could not save or log its rule" in said
    assert trainer.global_step == EPOCHS * BATCHES


# -- validation batches


class Stream(IterableDataset):
    """Goes on where it stopped, whoever reads."""

    def __init__(self):
        self.served = 0

    def __iter__(self):
        for _ in range(12):
            self.served += 1
            yield examples(seed=self.served, count=1)[0]


class Drawing(torch.utils.data.Dataset):
    """Of a map's style, and draws from a generator of its own."""

    def __init__(self):
        self.draws, self.asked = torch.Generator().manual_seed(3), 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.asked += 1
        inputs, targets = examples()[index]
        return inputs + torch.randn(5, generator=self.draws), targets


class Validated(Plain):
    def __init__(self):
        super().__init__()
        self.validated = []

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[0].clone())


VALIDATION = {
    "a stream": lambda: DataLoader(Stream(), batch_size=3),
    "a dataset that draws": lambda: DataLoader(Drawing(), batch_size=3),
    "shuffled by a generator": lambda: DataLoader(
        examples(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(2)
    ),
    "shuffled by the global one": lambda: DataLoader(examples(), batch_size=3, shuffle=True),
}


@pytest.mark.parametrize("name", VALIDATION)
def test_validation_sees_what_it_would_see_without(name, tmp_path):
    plain, watched = Validated(), Validated()
    fit(
        plain,
        {"train_dataloaders": loader(), "val_dataloaders": VALIDATION[name]()},
        LearnedOptimizerAdapter(AdamRule(1e-2)),
    )
    callback = adapting(tmp_path, search=partial(default_search, sigma=1e-12))
    fit(watched, {"train_dataloaders": loader(), "val_dataloaders": VALIDATION[name]()}, callback)
    assert callback.search.rounds >= 2
    assert callback._recorder.on_validation
    assert same(plain.validated, watched.validated)
    assert same(parameters(plain), parameters(watched))


def test_examples_are_read_beside_the_loader(tmp_path):
    dataset = Drawing()
    module = Validated()
    callback = adapting(tmp_path)
    trainer = fit(
        module, {"train_dataloaders": loader(), "val_dataloaders": DataLoader(dataset, batch_size=3)}, callback
    )
    kept, asked = dataset.draws.get_state(), dataset.asked
    structure = torch.utils._pytree.tree_structure(next(iter(loader())))
    found = ValidationBatches(2).like(structure, trainer, module)
    assert [len(batch[0]) for batch in found] == [3, 3]
    assert torch.equal(dataset.draws.get_state(), kept)
    assert dataset.asked == asked
    fresh = Drawing()
    fresh.draws.set_state(kept)
    assert torch.equal(found[0][0][1], [fresh[index] for index in range(2)][1][0])


def test_batches_of_a_stream_are_in_the_checkpoint(tmp_path):
    """A resumed fit, which makes no sanity check, measures on those that the first one saw."""
    save = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")

    def run(callback, **settings):
        module = Validated()
        data = {"train_dataloaders": StatefulLoader(), "val_dataloaders": DataLoader(Stream(), batch_size=3)}
        data["train_dataloaders"].batches = list(loader())
        fit(module, data, callback, *settings.pop("callbacks", ()), check_val_every_n_epoch=EPOCHS, **settings)
        return module

    first, second = adapting(tmp_path), adapting(tmp_path)
    straight = run(first, callbacks=[save], enable_checkpointing=True)
    resumed = run(second, ckpt_path=tmp_path / "step=4.ckpt")
    assert first._recorder.on_validation
    assert second._recorder.on_validation
    assert first.search.rounds == second.search.rounds >= 2
    assert first.search.evidence == second.search.evidence
    assert same(parameters(straight), parameters(resumed))
    assert load_rule(tmp_path / "adapted").rule_name == "adam"
