"""A LightningModule as a task: its own training_step, its own batches, side by side or one by one."""

import logging
import warnings

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from torch.func import grad_and_value, vmap
from torch.utils.data import DataLoader, TensorDataset

from lightning_lopt import PES, AdamRule, MetaTrainer, ResidualRule, TaskDataModule
from lightning_lopt.rules.contract.roles import roles_of
from lightning_lopt.seeding import generator
from lightning_lopt.tasks import FixedTask, LightningTask
from lightning_lopt.tasks.transforms import AUGMENTATIONS, Augmented, NoisyGradientTask, SmallerBatchTask

RESIDUAL = ResidualRule()


class Plain(L.LightningModule):
    """A classifier that logs, written as people write them."""

    def __init__(self, hidden=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, hidden), self.middle(hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)

    def middle(self, hidden):
        return nn.Identity()

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss", loss, prog_bar=True)
        self.accuracy(logits, y)
        self.log_dict({"accuracy": self.accuracy, "batch": float(batch_idx)})
        return loss


class BatchNorm(Plain):
    def middle(self, hidden):
        return nn.BatchNorm1d(hidden)


class Dropout(Plain):
    def middle(self, hidden):
        return nn.Dropout(0.4)


class Item(Plain):
    """Cannot be vmapped, and computes what Plain computes."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return {"loss": loss if loss.item() > -1 else -loss, "value": loss.item()}


class Mixup(Plain):
    def training_step(self, batch, batch_idx):
        x, y = batch
        share = float(np.random.beta(1.0, 1.0))  # noqa: NPY002
        logits = self.net(share * x + (1 - share) * x.flip(0))
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y.flip(0))


class AlphaDropout(Plain):
    def middle(self, hidden):
        return nn.AlphaDropout(0.3)


class Writes(Plain):
    """Keeps a running average in a buffer, in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def training_step(self, batch, batch_idx):
        self.mean.mul_(0.9).add_(0.1 * self.net[0].weight.mean(0))
        return super().training_step((batch[0] - self.mean, batch[1]), batch_idx)


class Variational(L.LightningModule):
    """An autoencoder with dict batches, and a training_step without batch_idx."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def training_step(self, batch):
        mean, log_std = self.encoder(batch["x"]["inputs"]).chunk(2, -1)
        code = mean + log_std.exp() * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + (2 * log_std).exp() - 1).sum(-1) - log_std.sum(-1)
        return {"loss": ((self.decoder(code) - batch["x"]["inputs"]) ** 2).mean() + 0.01 * kl.mean()}


class Recurrent(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def training_step(self, batch, batch_idx):
        out, _ = self.lstm(batch[0].unflatten(1, (3, 2)))
        return F.cross_entropy(self.head(out[:, -1]), batch[1])


class Attention(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        tokens = batch[1].reshape(-1, 4)
        return F.cross_entropy(self.head(self.block(self.embed(tokens))).flatten(0, 1), tokens.roll(1, 1).flatten())


class Causal(Attention):
    """Attention written out, as in most language models of today."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(8, 24)

    def training_step(self, batch, batch_idx):
        tokens = batch[1].reshape(-1, 4)
        q, k, v = self.block(self.embed(tokens)).chunk(3, -1)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True)
        return F.cross_entropy(self.head(out).flatten(0, 1), tokens.roll(-1, 1).flatten())


ALL = [Causal, Plain, BatchNorm, Dropout, Item, Mixup, AlphaDropout, Writes, Variational, Recurrent, Attention]


def made(kind, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args)


def batches(count=6, size=16, seed=0):
    draws = generator(seed)
    x = torch.randn(count, size, 6, generator=draws)
    return [(one, (one[:, 0] > 0).long() + (one[:, 1] > 0).long()) for one in x]


def task_of(kind, **settings):
    data = batches()
    if kind is Variational:
        data = [{"x": {"inputs": x}, "kind": "toy"} for x, _ in data]
    return LightningTask(made(kind), data, **settings)


def take(tree, index):
    return {name: value[index] for name, value in tree.items()}


def spread(task, count=3):
    """Parameters of several runs that differ."""
    start = task.init(generator(0))
    noise = {name: torch.randn(count, *value.shape, generator=generator(1)) for name, value in start.items()}
    return {name: value + 0.1 * noise[name] for name, value in start.items()}


@pytest.mark.parametrize("kind", [Plain, BatchNorm, Item, Recurrent, Writes])
def test_loss_and_gradient_are_those_of_training_step(kind):
    module, data = made(kind), batches()
    task = LightningTask(module, data)
    params, batch = task.init(generator(0)), task.batch(generator(3))
    reference = made(kind)
    reference.log = reference.log_dict = lambda *args, **kwargs: None
    place = next(i for i, (x, _) in enumerate(data) if torch.equal(x, batch["batch[0]"]))
    result = reference.training_step(data[place], 0)
    loss = result["loss"] if isinstance(result, dict) else result
    loss.backward()
    torch.testing.assert_close(task.loss(params, batch), loss.detach())
    grads, value, carried = task.gradient(params, batch)
    assert carried == {}
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(grads, {name: param.grad for name, param in reference.named_parameters()})
    assert task.roles == roles_of(module)


@pytest.mark.parametrize("kind", ALL)
def test_vmap_equals_loop(kind):
    task = task_of(kind)
    params, batch = spread(task), task.batch(generator(5), 3)
    grads, losses = vmap(grad_and_value(task.loss))(params, batch)
    shared = vmap(task.loss, (0, None))(params, task.full_batch("train"))
    for index in range(3):
        one_grads, loss = grad_and_value(task.loss)(take(params, index), take(batch, index))
        torch.testing.assert_close(losses[index], loss)
        torch.testing.assert_close(take(grads, index), one_grads, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(task.loss(take(params, index), take(batch, index)), loss)
        torch.testing.assert_close(shared[index], task.loss(take(params, index), task.full_batch("train")))
    torch.testing.assert_close(vmap(task.loss)(params, batch), losses)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Plain, ""),
        (BatchNorm, ""),
        (Dropout, ""),
        (Variational, ""),
        (Item, "vmap of training_step fails at test_lightning_task.py:"),
        (Mixup, "draws random numbers"),
        (AlphaDropout, "draws random numbers"),
        (Writes, "vmap of training_step fails"),
        (Recurrent, "vmap of training_step fails"),
        (Attention, "draws random numbers"),
        (Causal, ""),
    ],
)
def test_says_how_it_runs_and_why(kind, reason, caplog):
    with caplog.at_level(logging.INFO, "lightning_lopt"):
        task = task_of(kind)
    assert task.vmapped == task.config["vmapped"] == (not reason)
    assert (not task.reason) == task.vmapped
    assert f"{task.name}: inner runs go {'side by side' if task.vmapped else 'one by one'}" in caplog.text
    if reason:
        assert reason in task.reason


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("rule", [AdamRule(0.01), RESIDUAL], ids=["adam", "residual"])
def test_one_outer_step(kind, rule):
    task, estimator = task_of(kind), PES(3, pairs=2)
    with torch.no_grad():  # as MetaTrainer does
        estimate = estimator.estimate(rule, [estimator.start(rule, task, horizon=6, seed=0)])
        again = estimator.estimate(rule, [estimator.start(rule, task, horizon=6, seed=0)])
    assert estimate.failures == 0
    assert estimate.gradient.any()
    assert estimate.gradient.isfinite().all()
    assert torch.equal(estimate.gradient, again.gradient)


def test_a_loop_gives_the_estimate_that_vmap_gives():
    """Item computes what Plain computes; only how is different."""
    estimates = []
    for kind in (Plain, Item):
        task, estimator = task_of(kind), PES(5, pairs=3)
        runs = estimator.start(RESIDUAL, task, horizon=10, seed=0)
        estimates.append(estimator.estimate(RESIDUAL, [runs]))
    torch.testing.assert_close(estimates[0].meta_losses, estimates[1].meta_losses)
    for name, value in estimates[0].groups[0].params.items():
        torch.testing.assert_close(estimates[1].groups[0].params[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [BatchNorm, Writes, Plain, Item])
def test_the_module_is_let_alone(kind):
    module = made(kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    task = LightningTask(module, batches())
    vmap(grad_and_value(task.loss))(spread(task), task.batch(generator(0), 3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "log" not in vars(module)
    assert module.accuracy._update_count == 0
    first, second = task.init(generator(0)), task.init(generator(0))
    first["net.0.weight"].zero_()
    assert second["net.0.weight"].any()
    batch = task.batch(generator(0))
    assert torch.equal(
        task.loss(second, batch), task.loss(second, batch)
    )  # nothing that a step wrote is read by another


def test_batch_norm_in_eval_mode_uses_its_averages():
    module = made(BatchNorm)
    module.net[1].running_mean.fill_(2.0)
    module.net[1].eval()
    task, data = LightningTask(module, batches()), batches()
    expected = torch.stack([F.cross_entropy(module.net(x), y) for x, y in data]).mean()
    torch.testing.assert_close(task.loss(task.init(generator(0)), task.full_batch("train")), expected.detach())
    assert task.vmapped


def test_logging_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = task_of(Plain)
        task.loss(task.init(generator(0)), task.batch(generator(0)))


def test_collections_of_metrics_are_silent():
    class Collection(Plain):
        def __init__(self):
            super().__init__()
            self.scores = torchmetrics.MetricCollection([torchmetrics.MeanMetric(), torchmetrics.SumMetric()])

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log_dict(self.scores(loss))
            return loss

    task, plain = task_of(Collection), task_of(Plain)
    params, batch = plain.init(generator(0)), plain.batch(generator(0))
    assert torch.equal(task.loss(params, batch), plain.loss(params, batch))
    assert task.vmapped


def test_dropout_follows_from_the_batch():
    task = task_of(Dropout)
    params, batch = task.init(generator(0)), task.batch(generator(0))
    other = batch | {"~seed": batch["~seed"] + 1}
    assert torch.equal(task.loss(params, batch), task.loss(params, batch))
    assert not torch.equal(task.loss(params, batch), task.loss(params, other))
    assert len(task.batch(generator(0), 4, 5)["~seed"].unique()) == 20
    module = made(Dropout).eval()
    expected = torch.stack([F.cross_entropy(module.net(x), y) for x, y in batches()]).mean().detach()
    torch.testing.assert_close(task.loss(params, task.full_batch("train")), expected)  # measured without dropout

    estimator = PES(2, pairs=2)
    runs = estimator.start(RESIDUAL, task, horizon=4, seed=0)
    (after,) = PES(2, pairs=2, sigma=1e-12).estimate(RESIDUAL, [runs]).groups
    for value in after.params.values():  # both particles of a pair have the same masks
        assert torch.equal(*value.chunk(2))


def test_dropout_drops_its_share():
    class Ones(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(4000))

        def training_step(self, batch, batch_idx):
            return F.dropout(self.x, 0.25, self.training).mean() + 0 * batch.sum()

    task = LightningTask(made(Ones), [torch.zeros(2)])
    gradient = task.gradient(task.init(generator(0)), task.batch(generator(0)))[0]["x"] * 4000
    torch.testing.assert_close(gradient.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs((gradient > 0).float().mean() - 0.75) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_each_run_of_a_function_starts_elsewhere():
    task = LightningTask(lambda: Plain(5), batches())
    first, second, again = (task.init(generator(seed)) for seed in (0, 1, 0))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["net.0.weight"], second["net.0.weight"])
    bound = 6**-0.5
    assert bound * 0.8 < first["net.0.weight"].abs().max() <= bound  # PyTorch's own initialisation


def test_lists_do_not_grow():
    class Collects(Plain):
        def __init__(self):
            super().__init__()
            self.outputs = []

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.outputs.append(loss)
            return loss

    task = task_of(Collects)
    vmap(task.loss)(spread(task), task.batch(generator(0), 3))
    assert task._step.module.outputs == []
    assert task.vmapped


def test_frozen_parameters_are_constants():
    module = made(Plain)
    module.net[0].requires_grad_(False)
    task = LightningTask(module, batches())
    assert set(task.init(generator(0))) == set(task.roles) == {"net.3.weight", "net.3.bias"}


class Data(L.LightningDataModule):
    def __init__(self, valid=True):
        super().__init__()
        self.calls = []
        self.valid = valid

    def prepare_data(self):
        self.calls.append("prepare")

    def setup(self, stage):
        self.calls.append(stage)
        self.sets = TensorDataset(torch.arange(44.0)[:, None].expand(-1, 6), torch.arange(44) % 3)

    def train_dataloader(self):
        return DataLoader(self.sets, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.sets, 11) if self.valid else []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 44 + 1e-4 * torch.randn(batch[0].shape), batch[1]


def test_data_module():
    data = Data()
    task = LightningTask(made(Plain), data)
    assert data.calls == ["prepare", "fit"]
    assert task.config["batches"] == {"train": 5, "valid": 4}  # the last of 4 examples has another shape
    assert (task.batch_size, task.full_batch("valid")["~all/batch[0]"].shape) == (8, (4, 11, 6))
    assert task.full_batch("train")["~all/batch[0]"].max() < 1
    assert task.batch(generator(0), 2, 3, split="valid")["batch[1]"].shape == (2, 3, 11)
    again = LightningTask(made(Plain), Data())
    assert torch.equal(again.full_batch("train")["~all/batch[0]"], task.full_batch("train")["~all/batch[0]"])


def test_dataloaders_and_max_batches():
    data = TensorDataset(torch.randn(64, 6, generator=generator(0)), torch.arange(64) % 3)
    task = LightningTask(made(Plain), DataLoader(data, 8, shuffle=True), DataLoader(data, 16), max_batches=3)
    assert task.config["batches"] == {"train": 3, "valid": 3}
    assert {len(task.full_batch(split)["~all/batch[0]"][0]) for split in ("train", "valid")} == {8, 16}
    seen = task.batch(generator(0), 200)["batch[1]"].unique(dim=0)
    assert len(seen) == 3  # all of them are drawn, nothing else


def test_a_module_that_a_trainer_holds(tmp_path):
    module = made(
        Fitted := type(
            "Fitted", (Plain,), {"configure_optimizers": lambda self: torch.optim.SGD(self.parameters(), 0.1)}
        )
    )
    trainer = L.Trainer(
        max_steps=2,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with torch.random.fork_rng():
        trainer.fit(module, DataLoader(batches(), batch_size=None))
    task = LightningTask(module, batches())
    assert module.trainer is trainer
    assert task._step.module.trainer is not trainer
    assert task._step.module.global_step == 2
    assert torch.equal(task.init(generator(0))["net.0.weight"], module.net[0].weight)
    assert Fitted.__name__ in task.name


def test_transforms_apply():
    task = NoisyGradientTask(SmallerBatchTask(task_of(Dropout), 4), 0.1)
    batch = task.batch(generator(0), 2)
    assert (batch["batch[0]"].shape, batch["~seed"].shape) == ((2, 4, 6), (2,))
    estimator = PES(2, pairs=2)
    estimate = estimator.estimate(RESIDUAL, [estimator.start(RESIDUAL, task, horizon=4, seed=0)])
    assert estimate.failures == 0
    family = Augmented(FixedTask(task_of(Item)), AUGMENTATIONS["broad"])
    for seed in range(8):
        task = family.sample(generator(seed))
        estimate = estimator.estimate(RESIDUAL, [estimator.start(RESIDUAL, task, horizon=4, seed=0)])
        assert estimate.failures == 0, task.name


def test_meta_training_on_it():
    family = FixedTask(task_of(Dropout, name="mine/small"))
    assert (family.name, family.config["task"], family.config["module"]) == ("mine", "mine/small", "Dropout")
    module = MetaTrainer(AdamRule(), PES(2, pairs=2), groups=1, horizons=(4, 4))
    trainer = L.Trainer(
        max_steps=3,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with torch.random.fork_rng():
        trainer.fit(module, TaskDataModule(family))
    assert module.outer_step == 3


def changed(**methods):
    return made(type("Changed", (Plain,), methods))


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def diverged(module, batch, batch_idx):
    return module.net(batch[0]).sum() * torch.nan


class Needs(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / self.trainer.her_own


class SetUp(Plain):
    def setup(self, stage):
        raise FileNotFoundError("digits")

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / self.classes


class Lazy(Plain):
    def middle(self, hidden):
        return nn.LazyLinear(hidden)


class Silent(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


RAGGED = [(torch.zeros(8, n, 6), torch.zeros(8).long()) for n in range(1, 6)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LightningTask(made(Manual), batches()), "Manual uses manual optimization"),
        (lambda: LightningTask(made(Silent), batches()), "Silent has no training_step; write one"),
        (lambda: LightningTask(changed(training_step=lambda s, b, i: None), batches()), "gave NoneType for the loss"),
        (lambda: LightningTask(changed(training_step=lambda s, b, i: s.net(b[0])), batches()), r"shape \(16, 3\) for"),
        (
            lambda: LightningTask(changed(training_step=lambda s, b, i: b[0].sum()), batches()),
            "the loss does not depend on the parameters",
        ),
        (
            lambda: LightningTask(changed(training_step=lambda s, dataloader_iter: None), batches()),
            "takes the iterator of the dataloader",
        ),
        (lambda: LightningTask(changed(training_step=diverged), batches()), "gives a loss of nan at the start; check"),
        (
            lambda: LightningTask(made(Needs), batches()),
            r"training_step fails outside a Trainer \(AttributeError: .*'her",
        ),
        (lambda: LightningTask(made(SetUp), batches()), r"before that its setup failed \(FileNotFoundError: digits\)"),
        (lambda: LightningTask(made(Lazy), batches()), "Lazy has lazy layers without shapes; send one batch"),
        (lambda: LightningTask(lambda: 1 / 0, batches()), r"<lambda> fails \(ZeroDivisionError: division by zero\)"),
        (lambda: LightningTask(made(Plain).requires_grad_(False), batches()), "no parameter that requires a gradient"),
        (lambda: LightningTask(made(Plain), []), "Plain, train batches: there is no batch"),
        (lambda: LightningTask(made(Plain), ["text"]), "a batch holds no tensor"),
        (lambda: LightningTask(made(Plain), RAGGED), "of 5 batches only 1 have the same shapes .*pad or crop"),
        (
            lambda: LightningTask(made(Plain), [(*b, [i]) for i, b in enumerate(batches())]),
            r"batch\[2\]\[0\] is neither",
        ),
        (lambda: LightningTask(made(Plain), batches(), max_batches=0), "max_batches must be at least 1, got 0"),
        (lambda: LightningTask(made(Plain), batches(), [b[0] for b in batches()]), "give both the same structure"),
        (lambda: LightningTask(made(Plain), L.LightningDataModule()), "has no train_dataloader"),
        (lambda: LightningTask(made(Plain), Data(valid=False)), "Plain, valid batches: there is no batch"),
        (lambda: task_of(Plain).batch(generator(0), split="valid"), "has no valid batches; pass LightningTask"),
        (lambda: task_of(Plain).full_batch("valid"), "has no valid batches"),
    ],
)
def test_what_cannot_be_used_gets_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
