"""A LightningModule's training_step as a function of its parameters: without a Trainer, without a trace."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torchmetrics import Metric, MetricCollection

from lightning_lopt.rules.base import Params


class TrainingStep(nn.Module):
    """The ``training_step`` of a copy of a module, as a pure function of parameters and batch.

    - ``self.log`` and ``self.log_dict`` do nothing; metrics of torchmetrics keep no state and give NaN.
    - Batch normalisation that is in training mode normalises by the batch and keeps no running averages; other buffers
      are constants: what a step writes into them is forgotten, and so is what it appends to lists of the module.
    - ``batch_idx``, ``global_step`` and ``current_epoch`` are 0; there is no trainer.

    Args:
        module: any LightningModule with automatic optimization; copied, and let alone.

    Raises:
        ValueError: if it has no ``training_step``, steps its optimizers itself, or has nothing to train.
    """

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        kind = type(module).__name__
        if not module.automatic_optimization:
            raise ValueError(
                f"{kind} uses manual optimization, so its training_step makes the steps that a rule should make; set "
                "automatic_optimization = True and return the loss."
            )
        step = module.training_step
        if not is_overridden("training_step", module, L.LightningModule):
            raise ValueError(f"{kind} has no training_step; write one that returns the loss.")
        if is_param_in_hook_signature(step, "dataloader_iter", explicit=True):
            raise ValueError(f"{kind}.training_step takes the iterator of the dataloader; let it take a batch.")
        self.kind = kind
        self.module = copy.deepcopy(module)  # a LightningModule leaves its trainer behind when it is copied
        self.module.configure_model()
        self.trained = [name for name, value in self.module.named_parameters() if value.requires_grad]
        if not self.trained:
            raise ValueError(f"{kind} has no parameter that requires a gradient; there is nothing to train.")
        self.indexed = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        self._lists = [(value, len(value)) for value in vars(self.module).values() if isinstance(value, list)]
        for child in self.module.modules():
            _silence(child)
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training:
                replace_all_batch_norm_modules_(child)

    def params(self) -> Params:
        """The trained parameters of the copy, cloned."""
        values = dict(self.module.named_parameters())
        return {name: values[name].detach().clone() for name in self.trained}

    def output(self, params: Params, batch: Any) -> Any:
        """What ``training_step`` returns for ``batch``, as a dataloader gives it."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        values = {f"module.{name}": value for name, value in {**buffers, **params}.items()}
        output = functional_call(self, values, (batch,))
        for held, length in self._lists:
            del held[length:]
        return output

    def loss(self, params: Params, batch: Any) -> Tensor:
        """The loss in :meth:`output`, 0-dim.

        Raises:
            ValueError: if there is none.
        """
        return self.loss_in(self.output(params, batch))

    def loss_in(self, output: Any) -> Tensor:
        """The loss in what ``training_step`` returned, 0-dim.

        Raises:
            ValueError: if there is none.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"{self.kind}.training_step gave {got} for the loss; return one number for every batch, as a tensor or "
                'under "loss".'
            )
        return loss.reshape(())

    def forward(self, batch: Any) -> Any:
        return self.module.training_step(batch, 0) if self.indexed else self.module.training_step(batch)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _silence(module: nn.Module) -> None:
    if isinstance(module, L.LightningModule):
        module.log = module.log_dict = _nothing  # type: ignore[method-assign]
    elif isinstance(module, MetricCollection):
        module.update = _nothing  # type: ignore[method-assign]
        module.forward = module.compute = lambda *args, **kwargs: {}  # type: ignore[method-assign]
    elif isinstance(module, Metric):
        module.update = _nothing  # type: ignore[method-assign]
        module.forward = module.compute = lambda *args, **kwargs: torch.tensor(torch.nan)  # type: ignore[method-assign]
