"""Compare untuned `base` with AdamW at four learning rates on Lightning models of other packages.

python examples/research/third_party.py --out third_party.jsonl
python examples/research/third_party.py --out third_party.jsonl --table

Only the callback `LearnedOptimizerAdapter("base")` is added for `base`. AdamW has the defaults of PyTorch and a cosine
schedule to 0. Models and losses are those of the packages. Data sets are small; they are synthetic or come with the
packages. Two pretrained models are fine-tuned to classify tones, with few and with many examples. Each run is a line of
JSON in the file; a second call makes only the missing runs. The script skips a model if its package is missing. Three
losses are compared: the mean training loss of the last 5 % of the steps, and of the validation losses that Lightning
logs at 15 points, the last one and the lowest one. Seconds are processor seconds of the whole fit.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lopt import LearnedOptimizerAdapter

RATES = (1e-3, 3e-3, 3e-4, 1e-2)
POINTS = 15
"""Number of validations in a run."""
TOLERANCE = 1.02
"""A loss counts as not worse than AdamW up to this factor times the lowest loss of AdamW."""


class CosineAdamW(L.Callback):
    """Replaces the optimizers of a module by AdamW with a cosine schedule to 0."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called before ``configure_optimizers``: replaces this method."""

        def configure_optimizers() -> dict[str, Any]:
            optimizer = torch.optim.AdamW(pl_module.parameters(), self.rate)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(trainer.estimated_stepping_batches))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

        pl_module.configure_optimizers = configure_optimizers


class Recorder(L.Callback):
    """Records the losses of a fit, and the names of parameters that the fit did not change."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.valid: dict[int, float] = {}
        self.metric = ""
        self.unchanged: list[str] = []
        self.steps = 0
        self._start: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> Recorder:
        """Return the same object, since some packages copy their models with the callbacks."""
        return self

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Called before the first step: copies the parameters."""
        self._start = {name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after each step: records the training loss."""
        self.train.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Called after each validation: records the validation loss."""
        if not trainer.sanity_checking:
            self.valid[trainer.global_step] = float(trainer.callback_metrics[self.metric])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called after the last step: compares the parameters with the initial parameters."""
        self.steps = trainer.global_step
        now = dict(pl_module.named_parameters())
        self.unchanged = [name for name, start in self._start.items() if torch.equal(now[name], start)]


class Run:
    """The callbacks of a run and the arguments of its Trainer."""

    def __init__(self, rate: float | None) -> None:
        self.recorder = Recorder()
        self.callbacks = [LearnedOptimizerAdapter("base") if rate is None else CosineAdamW(rate), self.recorder]

    def trainer(self, steps: int, metric: str = "val_loss", *, callbacks: bool = True) -> dict[str, Any]:
        """Arguments of a Trainer that makes ``steps`` steps and validates :data:`POINTS` times.

        Args:
            steps: a multiple of :data:`POINTS`.
            metric: name under which the module logs the validation loss.
            callbacks: whether the callbacks are among the arguments.
        """
        self.recorder.metric = metric
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        intervals = {"max_steps": steps, "val_check_interval": steps // POINTS, "check_val_every_n_epoch": None}
        settings = {"accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0}
        return quiet | intervals | settings | ({"callbacks": self.callbacks} if callbacks else {})


class Plain(L.LightningModule):
    """A network of a package with AdamW and with the loss of the package's examples."""

    def __init__(self, net: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self.net, batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net, batch), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def class_loss(net: nn.Module, batch: Any) -> Tensor:
    """The cross-entropy of a batch of inputs and indices of classes."""
    return F.cross_entropy(net(batch[0]), batch[1])


def loaders(train: tuple[Tensor, ...], valid: tuple[Tensor, ...], batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Shuffled batches of training data, and batches of validation data."""
    batches = DataLoader(TensorDataset(*train), batch_size, shuffle=True, drop_last=True)
    return batches, DataLoader(TensorDataset(*valid), 128)


# -- series


def wavy_series(series: int, length: int) -> Any:
    """A table with a row for each point of each series; a series is a sum of two waves, a trend, a level and noise."""
    import numpy as np
    import pandas as pd

    draw = np.random.default_rng(0)
    times = np.arange(length)
    frames = []
    for name in range(series):
        level, trend, phase = draw.normal(), 0.01 * draw.normal(), draw.uniform(0, 24)
        waves = np.sin(2 * np.pi * (times + phase) / 24) + 0.5 * np.sin(2 * np.pi * times / 7)
        values = level + trend * times + draw.uniform(0.5, 1.5) * waves + 0.3 * draw.normal(size=length)
        frames.append(pd.DataFrame({"series": str(name), "time": times, "value": values.astype("float32")}))
    return pd.concat(frames, ignore_index=True)


def forecasting_loaders(**options: Any) -> tuple[Any, DataLoader, DataLoader]:
    """A data set of pytorch-forecasting, and its loaders; the last 24 points of each series are for validation."""
    from pytorch_forecasting import TimeSeriesDataSet

    table = wavy_series(30, 150)
    columns = {"time_idx": "time", "target": "value", "group_ids": ["series"]}
    lengths = {"max_encoder_length": 24, "max_prediction_length": 6}
    real = {"time_varying_unknown_reals": ["value"]}
    train = TimeSeriesDataSet(table[table.time < 126], **columns, **lengths, **real, **options)
    valid = TimeSeriesDataSet.from_dataset(train, table, min_prediction_idx=126)
    return train, train.to_dataloader(train=True, batch_size=64), valid.to_dataloader(train=False, batch_size=128)


def temporal_fusion_transformer(run: Run) -> None:
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer

    data, train, valid = forecasting_loaders(
        static_categoricals=["series"], time_varying_known_reals=["time"], add_relative_time_idx=True
    )
    model = TemporalFusionTransformer.from_dataset(
        data, hidden_size=16, attention_head_size=2, hidden_continuous_size=8, dropout=0.1, loss=QuantileLoss()
    )
    L.Trainer(**run.trainer(300), gradient_clip_val=0.1).fit(model, train, valid)


def deep_ar(run: Run) -> None:
    from pytorch_forecasting import DeepAR, NormalDistributionLoss

    data, train, valid = forecasting_loaders(static_categoricals=["series"])
    model = DeepAR.from_dataset(data, hidden_size=32, rnn_layers=2, dropout=0.1, loss=NormalDistributionLoss())
    L.Trainer(**run.trainer(300), gradient_clip_val=0.1).fit(model, train, valid)


def nhits(run: Run) -> None:
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    table = wavy_series(30, 200)
    table = pd.DataFrame({"unique_id": table.series, "ds": table.time, "y": table.value})
    arguments = run.trainer(450, "ptl/val_loss")
    steps, interval = arguments.pop("max_steps"), arguments.pop("val_check_interval")
    arguments.pop("check_val_every_n_epoch")  # the package sets this argument
    model = NHITS(
        h=12,
        input_size=36,
        mlp_units=[[64, 64]] * 3,
        windows_batch_size=128,
        max_steps=steps,
        val_check_steps=interval,
        random_seed=torch.initial_seed(),
        **arguments,
    )
    NeuralForecast([model], freq=1).fit(table, val_size=48)


def temporal_convolution(run: Run) -> None:
    from darts import TimeSeries
    from darts.models import TCNModel

    table = wavy_series(20, 200)
    parts = [
        TimeSeries.from_values(group.value.to_numpy()[:, None]).split_before(150)
        for _, group in table.groupby("series")
    ]
    model = TCNModel(
        input_chunk_length=36,
        output_chunk_length=12,
        num_filters=16,
        dropout=0.1,
        batch_size=64,
        n_epochs=1000,
        random_state=torch.initial_seed(),
        pl_trainer_kwargs=run.trainer(450),
    )
    model.fit([part[0] for part in parts], val_series=[part[1] for part in parts])


# -- molecules, graphs, cells


def message_passing(run: Run) -> None:
    import numpy as np
    from chemprop import data, models
    from chemprop import nn as parts
    from rdkit import Chem, RDConfig, RDLogger
    from rdkit.Chem.Crippen import MolLogP

    RDLogger.DisableLog("rdApp.*")
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()[:1500]
    molecules = [Chem.MolFromSmiles(line.split()[0]) for line in lines]
    points = [data.MoleculeDatapoint(mol, np.array([MolLogP(mol)])) for mol in molecules if mol is not None]
    train, valid = data.MoleculeDataset(points[:-300]), data.MoleculeDataset(points[-300:])
    valid.normalize_targets(train.normalize_targets())
    model = models.MPNN(
        parts.BondMessagePassing(d_h=64), parts.MeanAggregation(), parts.RegressionFFN(input_dim=64, hidden_dim=64)
    )
    batches = (
        data.build_dataloader(train, 50, seed=torch.initial_seed()),
        data.build_dataloader(valid, 150, shuffle=False),
    )
    L.Trainer(**run.trainer(450)).fit(model, *batches)


def graph_convolution(run: Run) -> None:
    from torch_geometric.data import Data
    from torch_geometric.data.lightning import LightningNodeData
    from torch_geometric.nn import GCN
    from torch_geometric.utils import stochastic_blockmodel_graph

    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = 6
        between = torch.full((blocks, blocks), 0.01) + 0.03 * torch.eye(blocks)
        edges = stochastic_blockmodel_graph([200] * blocks, between)
        labels = torch.arange(blocks).repeat_interleave(200)
        features = 0.5 * torch.randn(blocks, 32)[labels] + torch.randn(len(labels), 32)
        parts = torch.rand(len(labels))
    graph = Data(features, edges, y=labels, train_mask=parts < 0.3, val_mask=parts > 0.6, test_mask=parts > 2)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        mask = batch.train_mask if net.training else batch.val_mask
        return F.cross_entropy(net(batch.x, batch.edge_index)[mask], batch.y[mask])

    model = Plain(GCN(32, 64, num_layers=3, out_channels=blocks, dropout=0.5), loss)
    L.Trainer(**run.trainer(300)).fit(model, datamodule=LightningNodeData(graph, loader="full"))


def single_cells(run: Run) -> None:
    import anndata
    import numpy as np
    import scvi

    draw = np.random.default_rng(0)
    kinds = draw.integers(0, 8, 2000)
    rates = np.exp(draw.normal(size=(8, 200)))[kinds] * draw.lognormal(0.0, 0.3, (2000, 1))
    counts = draw.poisson(rates * draw.gamma(2.0, 0.5, rates.shape)).astype("float32")
    table = anndata.AnnData(counts)
    scvi.settings.seed = torch.initial_seed()  # the split depends on this seed
    scvi.model.SCVI.setup_anndata(table)
    arguments = run.trainer(450, "validation_loss")
    del arguments["max_steps"], arguments["val_check_interval"]
    arguments["check_val_every_n_epoch"] = 2
    scvi.model.SCVI(table, n_hidden=64).train(max_epochs=30, train_size=0.8, batch_size=128, **arguments)


# -- tables


def tabular(run: Run, model: Any, table: Any, target: str, task: str) -> None:
    """Fit a model of pytorch-tabular to a table, whose last quarter is for validation."""
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig

    arguments = run.trainer(450, "valid_loss", callbacks=False)
    arguments = {key: value for key, value in arguments.items() if key not in ("logger", "enable_progress_bar")}
    trainer = TrainerConfig(
        batch_size=64,
        max_epochs=1000,
        early_stopping=None,
        checkpoints=None,
        load_best=False,
        progress_bar="none",
        accelerator=arguments.pop("accelerator"),
        seed=torch.initial_seed(),
        trainer_kwargs=arguments,
    )
    columns = [name for name in table.columns if name != target]
    tabular_model = TabularModel(
        data_config=DataConfig(target=[target], continuous_cols=columns, categorical_cols=[]),
        model_config=model(task=task, seed=torch.initial_seed()),
        optimizer_config=OptimizerConfig(),
        trainer_config=trainer,
        verbose=False,
    )
    quarter = len(table) // 4
    seed = torch.initial_seed()  # seed of the weights; the default of the package is 42
    tabular_model.fit(train=table[:-quarter], validation=table[-quarter:], callbacks=run.callbacks, seed=seed)


def gandalf(run: Run) -> None:
    import pandas as pd
    from pytorch_tabular.models import GANDALFConfig
    from sklearn.datasets import make_friedman1

    inputs, targets = make_friedman1(3000, 10, noise=1.0, random_state=0)
    table = pd.DataFrame(inputs, columns=[f"x{column}" for column in range(10)])
    tabular(run, GANDALFConfig, table.assign(y=(targets - targets.mean()) / targets.std()), "y", "regression")


def ft_transformer(run: Run) -> None:
    import pandas as pd
    from pytorch_tabular.models import FTTransformerConfig
    from sklearn.datasets import load_breast_cancer

    inputs, targets = load_breast_cancer(return_X_y=True)
    table = pd.DataFrame(inputs, columns=[f"x{column}" for column in range(inputs.shape[1])]).assign(y=targets)
    table = table.sample(frac=1.0, random_state=0).reset_index(drop=True)

    def config(**options: Any) -> Any:
        return FTTransformerConfig(**options, input_embed_dim=16, num_heads=2, num_attn_blocks=2)

    tabular(run, config, table, "y", "classification")


# -- text and images


def gpt2(run: Run) -> None:
    import argparse as first
    import inspect as second

    from transformers import GPT2Config, GPT2LMHeadModel

    text = "".join(Path(module.__file__).read_text() for module in (first, second))
    ids = torch.tensor(list(text.encode("ascii", "replace")))
    rows = ids[: len(ids) // 64 * 64].reshape(-1, 64)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=96, n_layer=2, n_head=4)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return net(input_ids=batch[0], labels=batch[0]).loss

    batches = loaders((rows[:-300],), (rows[-300:],), 16)
    L.Trainer(**run.trainer(450)).fit(Plain(GPT2LMHeadModel(config), loss), *batches)


def digit_images() -> tuple[Tensor, Tensor]:
    """Handwritten digits of 32 x 32 pixels around 0, and their labels, in random order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return F.interpolate(images, scale_factor=4, mode="bilinear")[order], torch.tensor(digits.target)[order]


def sim_clr(run: Run) -> None:
    import timm
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    def view(images: Tensor) -> Tensor:
        """Images with random rotation, scale, shift, contrast and noise, drawn for each image."""
        angle, size, shift = 0.3 * torch.randn(len(images)), torch.randn(len(images)), torch.randn(len(images), 2)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
        affine = torch.cat([turn * (0.2 * size).exp()[:, None, None], 0.2 * shift[:, :, None]], 2)
        grid = F.affine_grid(affine, list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return moved * (0.3 * torch.randn(len(images), 1, 1, 1)).exp() + 0.2 * torch.randn_like(images)

    images, _ = digit_images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        valid = view(images[-384:]), view(images[-384:])
    backbone = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    net = nn.Sequential(backbone, SimCLRProjectionHead(backbone.num_features, 64, 32))
    criterion = NTXentLoss(temperature=0.5)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        views = (view(batch[0]), view(batch[0])) if net.training else batch
        return criterion(net(views[0]), net(views[1]))

    batches = loaders((images[:-384],), valid, 64)
    L.Trainer(**run.trainer(300)).fit(Plain(net, loss), *batches)


def vision_transformer(run: Run) -> None:
    import timm

    images, labels = digit_images()
    net = timm.create_model("test_vit", img_size=32, patch_size=8, in_chans=1, num_classes=10)
    batches = loaders((images[:-400], labels[:-400]), (images[-400:], labels[-400:]), 64)
    L.Trainer(**run.trainer(300)).fit(Plain(net, class_loss), *batches)


def unet(run: Run) -> None:
    import segmentation_models_pytorch as smp

    draw = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = 12 + 40 * torch.rand(600, 2, 1, 1, generator=draw)
    radii = 5 + 10 * torch.rand(600, 1, 1, generator=draw)
    down, right = (rows - centres[:, 0]).abs(), (columns - centres[:, 1]).abs()
    discs = (down**2 + right**2 < radii**2).float()
    squares = (torch.maximum(down, right) < 0.8 * radii).float().flip(0)  # squares of other discs
    images = 0.5 * discs + 0.5 * squares + 0.3 * torch.randn(600, 64, 64, generator=draw)
    pairs = images[:, None], discs[:, None]
    net = smp.Unet(
        "tu-mobilenetv3_small_050", encoder_weights=None, decoder_channels=(64, 32, 16, 16, 8), in_channels=1, classes=1
    )
    dice = smp.losses.DiceLoss("binary")

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return dice(net(batch[0]), batch[1])

    batches = loaders(tuple(part[:-120] for part in pairs), tuple(part[-120:] for part in pairs), 12)
    L.Trainer(**run.trainer(300)).fit(Plain(net, loss), *batches)


# -- fine-tuning of pretrained models


TIMBRES = 8


def tones(count: int, seconds: float, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy tones at 16 kHz, (count, samples), and the index of their timbre, (count,).

    A timbre is a mean power of each of 12 harmonics. Pitch, phases and deviations from the mean power are random.
    """
    draw = torch.Generator().manual_seed(seed)
    recipes = torch.rand(TIMBRES, 12, generator=torch.Generator().manual_seed(7)) ** 4
    labels = torch.randint(TIMBRES, (count,), generator=draw)
    pitches = 90 * (400 / 90) ** torch.rand(count, generator=draw)
    times = torch.arange(int(16_000 * seconds)) / 16_000
    waves = torch.zeros(count, len(times))
    for harmonic in range(12):
        power = recipes[labels, harmonic] * (0.5 * torch.randn(count, generator=draw)).exp()
        phases = 2 * math.pi * torch.rand(count, generator=draw)
        angles = 2 * math.pi * (harmonic + 1) * pitches[:, None] * times + phases[:, None]
        waves += power[:, None] * angles.sin()
    waves = waves / waves.std(1, keepdim=True) + 0.5 * torch.randn(waves.shape, generator=draw)
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True), labels


def pitch_tracker(run: Run, count: int, steps: int) -> None:
    import torchcrepe

    class Timbre(nn.Module):
        """CREPE with a new classifier."""

        def __init__(self) -> None:
            super().__init__()
            self.crepe = torchcrepe.Crepe("tiny")
            weights = Path(torchcrepe.__file__).parent / "assets" / "tiny.pth"
            self.crepe.load_state_dict(torch.load(weights, weights_only=True))
            self.crepe.classifier = nn.Linear(self.crepe.in_features, TIMBRES)

        def forward(self, frames: Tensor) -> Tensor:
            crepe = self.crepe
            features = crepe.layer(crepe.embed(frames), crepe.conv6, crepe.conv6_BN)
            return crepe.classifier(features.permute(0, 2, 1, 3).reshape(len(frames), crepe.in_features))

    batches = loaders(tones(count, 0.064, 1), tones(160, 0.064, 2), 16)
    L.Trainer(**run.trainer(steps)).fit(Plain(Timbre(), class_loss), *batches)


def voice_encoder(run: Run, count: int, steps: int) -> None:
    from resemblyzer import VoiceEncoder, audio

    def spectrograms(count: int, seed: int) -> tuple[Tensor, Tensor]:
        waves, labels = tones(count, 1.0, seed)
        mels = [audio.wav_to_mel_spectrogram(0.1 * wave.numpy())[:80] for wave in waves]
        return torch.stack([torch.from_numpy(mel) for mel in mels]), labels

    net = nn.Sequential(VoiceEncoder("cpu", verbose=False), nn.Linear(256, TIMBRES))
    batches = loaders(spectrograms(count, 1), spectrograms(160, 2), 16)
    L.Trainer(**run.trainer(steps)).fit(Plain(net, class_loss), *batches)


FEW, MANY = (160, 210), (2400, 300)
"""Numbers of examples and of steps of a fine-tuning: 21 epochs, and 2."""

MODELS: dict[str, tuple[str, Callable[[Run], None]]] = {
    "TemporalFusionTransformer": ("pytorch-forecasting", temporal_fusion_transformer),
    "DeepAR": ("pytorch-forecasting", deep_ar),
    "NHITS": ("neuralforecast", nhits),
    "TCNModel": ("darts", temporal_convolution),
    "MPNN": ("chemprop", message_passing),
    "GCN": ("torch_geometric", graph_convolution),
    "SCVI": ("scvi-tools", single_cells),
    "GANDALF": ("pytorch-tabular", gandalf),
    "FTTransformer": ("pytorch-tabular", ft_transformer),
    "GPT2LMHeadModel": ("transformers", gpt2),
    "SimCLR": ("lightly timm", sim_clr),
    "Unet": ("segmentation-models-pytorch", unet),
    "VisionTransformer": ("timm", vision_transformer),
    "CREPE, few": ("torchcrepe torchaudio", lambda run: pitch_tracker(run, *FEW)),
    "CREPE, many": ("torchcrepe torchaudio", lambda run: pitch_tracker(run, *MANY)),
    "VoiceEncoder, few": ("resemblyzer", lambda run: voice_encoder(run, *FEW)),
    "VoiceEncoder, many": ("resemblyzer", lambda run: voice_encoder(run, *MANY)),
}
"""For the name of each model: the packages to install, and the function that fits the model."""


# -- runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("third_party.jsonl"), help="file to add to")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of models")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each optimizer")
    parser.add_argument("--table", action="store_true", help="print the table of the file without new runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in MODELS if any(part.lower() in name.lower() for part in arguments.only)]
    if not arguments.table:
        for seed in range(arguments.seeds):
            for name in names:
                run_missing(name, seed, arguments.out)
    print_table(names, lines_of(arguments.out))


def run_missing(name: str, seed: int, path: Path) -> None:
    """Make the missing runs of a model, with `base` and AdamW, and add them to the file."""
    stored = {(line["model"], line["rate"], line["seed"]) for line in lines_of(path)}
    for rate in (None, *RATES):
        if (name, rate, seed) in stored:
            continue
        try:
            line = one_run(name, rate, seed)
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, since {error.name} is missing; pip install {MODELS[name][0]}")
            return
        print(json.dumps({key: value for key, value in line.items() if key not in ("train", "valid")}), flush=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def one_run(name: str, rate: float | None, seed: int) -> dict[str, Any]:
    """Fit a model once; the line has losses, seconds, and the warnings and messages about the optimizer."""
    run = Run(rate)
    L.seed_everything(seed + 1, verbose=False)
    messages = Messages()
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with messages:
            MODELS[name][1](run)
    seconds = time.process_time() - begin
    texts = [str(warning.message) for warning in caught] + messages.texts
    recorder = run.recorder
    return {
        "model": name,
        "rate": rate,
        "seed": seed,
        "seconds": seconds,
        "steps": recorder.steps,
        "unchanged": recorder.unchanged,
        "said": sorted({text for text in texts if is_of_the_package(text)}),
        "train": recorder.train,
        "valid": recorder.valid,
    }


def is_of_the_package(text: str) -> bool:
    return any(part in text for part in ("LearnedOptimizer", "The rule ", "rule", "horizon"))


LOGGERS = (
    *("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities", "lightning_lopt"),
    *("pytorch_lightning", "lightning_fabric"),
)


class Messages(logging.Handler):
    """Records the log messages of Lightning, for both of its packages."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self)

    def __exit__(self, *error: object) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of the file, or no lines if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- table


def ends(line: dict[str, Any]) -> tuple[float, float, float]:
    """Final training loss, final and lowest validation loss; a loss that is not finite becomes infinite."""
    last = line["train"][-max(1, len(line["train"]) // 20) :]
    valid = [value if math.isfinite(value) else math.inf for value in line["valid"].values()]
    train = statistics.fmean(last)
    return train if math.isfinite(train) else math.inf, valid[-1], min(valid)


def print_table(names: list[str], lines: list[dict[str, Any]]) -> None:
    """Print means over the seeds with runs of all optimizers, in one row for each model, and then the counts."""
    columns = ("model", "package", "`base`", "AdamW, best of four", "its rates", "AdamW, 1e-3", "lowest validation")
    print("| " + " | ".join((*columns, "seconds", "seeds")) + " |\n|" + " --- |" * (len(columns) + 2))
    counts = dict.fromkeys(("rows", "train", "valid", "lowest", "train_default", "valid_default"), 0)
    for name in names:
        runs = {(line["rate"], line["seed"]): line for line in lines if line["model"] == name}
        seeds = [seed for seed in {seed for _, seed in runs} if all((rate, seed) in runs for rate in (None, *RATES))]
        if not seeds:
            continue
        means = {rate: mean_ends([runs[rate, seed] for seed in seeds]) for rate in (None, *RATES)}
        ours = means.pop(None)
        rates = [min(means, key=lambda rate, part=part: means[rate][part]) for part in range(3)]
        best = [means[rate][part] for part, rate in enumerate(rates)]
        default = means[1e-3]
        counts["rows"] += 1
        for part, key in enumerate(("train", "valid", "lowest")):
            counts[key] += not_worse(ours[part], best[part])
        counts["train_default"] += ours[0] < default[0]
        counts["valid_default"] += ours[1] < default[1]
        cells = [name, MODELS[name][0], pair(ours), pair(best), f"{rates[0]:g} / {rates[1]:g}", pair(default)]
        cells.append(f"{digits(ours[2])}, {digits(best[2])}")
        seconds = [
            statistics.fmean(runs[rate, seed]["seconds"] for rate in group for seed in seeds)
            for group in ((None,), RATES)
        ]
        cells += [", ".join(f"{value:.0f}" for value in seconds), str(len(seeds))]
        print("| " + " | ".join(cells) + " |")
    print(f"\nWithin 2 % of the best AdamW or lower, of {counts['rows']}: ", end="")
    print(f"training {counts['train']}, validation {counts['valid']}, lowest validation {counts['lowest']}.")
    print(f"Lower than AdamW at 1e-3: training {counts['train_default']}, validation {counts['valid_default']}.")


def mean_ends(lines: list[dict[str, Any]]) -> list[float]:
    """Means over the seeds of the losses that :func:`ends` returns."""
    return [statistics.fmean(values) for values in zip(*map(ends, lines), strict=True)]


def digits(loss: float) -> str:
    return f"{loss:.1f}" if abs(loss) >= 100 else f"{loss:.3f}"


def pair(losses: list[float]) -> str:
    return f"{digits(losses[0])} / {digits(losses[1])}"


def not_worse(ours: float, best: float) -> bool:
    """Whether a loss is at most 2 % above another, which may be negative."""
    return ours <= best + (TOLERANCE - 1) * abs(best)


if __name__ == "__main__":
    main()
