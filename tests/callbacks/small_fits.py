"""A tiny module, its data and a Trainer, for tests of what happens inside a fit."""

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_lopt import LearnedOptimizer, LearnedOptimizerAdapter, ResidualRule

BATCHES = 6


def trained(rule):
    """``rule`` with θ moved off its start, so that its networks, and through them the loss, matter."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in rule.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
    return rule


torch.manual_seed(0)
RULE = trained(ResidualRule())


def loader():
    draws = torch.Generator().manual_seed(1)
    data = [(torch.randn(5, generator=draws), torch.randint(3, (), generator=draws)) for _ in range(4 * BATCHES)]
    return DataLoader(data, batch_size=4)


class Stream(IterableDataset):
    """The batches of ``loader()``, without a length."""

    def __iter__(self):
        return iter(loader())


def stream():
    return DataLoader(Stream(), batch_size=None)


class StatefulLoader:
    """The batches of ``loader()``, going on after the last one handed out when its state is restored."""

    def __init__(self):
        self.batches = list(loader())
        self.handed_out = self.first = 0

    def __len__(self):
        return BATCHES

    def __iter__(self):
        first, self.first = self.first, 0
        for index in range(first, BATCHES):
            self.handed_out = index + 1
            yield self.batches[index]

    def state_dict(self):
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state_dict):
        self.first = state_dict["handed_out"] % BATCHES


class Recorder(ResidualRule):
    """Remembers the loss of each step that reached the rule."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def at(self, shared, context):
        self.seen.append(float(context.loss))
        return super().at(shared, context)


class Module(L.LightningModule):
    """Three classes from five numbers; ``configured(module)`` is what ``configure_optimizers`` returns."""

    def __init__(self, configured=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.configured = configured
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0].to(self.net[0].weight.dtype)), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return self.configured(self) if self.configured else LearnedOptimizer(self, RULE)


def small_module_of(package):
    """The class of a module like :class:`Module`, on the ``LightningModule`` of another package, trained by AdamW."""

    class Other(package.LightningModule):
        def __init__(self, configured=None):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
            self.configured = configured

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return self.configured(self) if self.configured else torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Other


def fit_of_pytorch_lightning(*, epochs=2, callbacks=(), module=None, **settings):
    """A fit with Trainer and module of ``pytorch_lightning``, the optimizer swapped; returns the Trainer."""
    import pytorch_lightning

    trainer = pytorch_lightning.Trainer(
        max_epochs=epochs,
        logger=settings.pop("logger", False),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[LearnedOptimizerAdapter(RULE), *callbacks],
        **settings,
    )
    trainer.fit(module or small_module_of(pytorch_lightning)(), loader())
    return trainer


class ManualModule(Module):
    """The same in manual optimization."""

    def __init__(self, configured=None):
        super().__init__(configured)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()


def fit(module, *, epochs=2, callbacks=(), adapter=None, ckpt=None, data=None, **settings):
    """Fit with an adapter before the other ``callbacks``, and return the Trainer."""
    trainer = L.Trainer(
        max_epochs=epochs,
        logger=settings.pop("logger", False),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        callbacks=[adapter or LearnedOptimizerAdapter(), *callbacks],
        **settings,
    )
    loaders = data if isinstance(data, dict) else {"train_dataloaders": loader() if data is None else data}
    trainer.fit(module, **loaders, ckpt_path=ckpt)
    return trainer
