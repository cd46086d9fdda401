"""A small regression whose targets are large, as a LightningModule with data: what assess is tried on."""

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 40  # of the planned run: pilots get there within a second


def dataset(examples=256, seed=0):
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 6, generator=draws)
    return TensorDataset(inputs, 50 * inputs @ torch.tensor([1.0, -1.0, 2.0, 0.5, 0.0, -2.0]))


def loader(**kwargs):
    return DataLoader(dataset(), batch_size=16, **kwargs)


class Model(L.LightningModule):
    """Linear: gradient descent finds the large weights at once, and Adam needs as many steps as they are far."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 1)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.mse_loss(self.net(inputs).squeeze(-1), targets)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return DataLoader(dataset(64, seed=1), batch_size=64)
