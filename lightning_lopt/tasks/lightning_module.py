"""A LightningModule's training_step as a function of its parameters: with a Trainer that does nothing, and no trace."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricCollection

from lightning_lopt._lightning import is_lightning
from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.lightning_classes import overrides
from lightning_lopt.tasks.module_copy import PlainAttributes, independent_copy
from lightning_lopt.tasks.stand_in import Fit, attach_stand_in, give_optimizers
from lightning_lopt.tasks.users_code import named, users_code


class TrainingStep(nn.Module):
    """The ``training_step`` of a copy of a module, as a pure function of parameters and batch.

    - ``self.log``, ``self.log_dict`` and ``self.print`` do nothing. Metrics of torchmetrics keep no state and give NaN,
      until :meth:`use_metrics` lets them compute.
    - Batch normalisation that is in training mode normalises by the batch and keeps no running averages; other buffers
      are constants: what a step writes into them is forgotten, and so is what it assigns to attributes or appends to
      lists of the module.
    - ``batch_idx`` is 0. ``self.trainer`` is a stand-in (:func:`~.stand_in.attach_stand_in`): ``global_step`` and
      ``current_epoch`` are those of ``fit``.

    Args:
        module: any LightningModule with automatic optimization, of ``lightning.pytorch`` or ``pytorch_lightning``;
            copied, and let alone.
        fit: what the stand-in Trainer answers; ``None`` for the fit that the module's own Trainer is in, if any.

    Attributes:
        shared: names of attributes that cannot be copied, which the copy shares with the module.
        setup_error: what ``setup("fit")`` raised, which is called where no Trainer has done so; empty for nothing.
        built_late: whether ``setup`` or ``configure_model`` made or changed parameters.

    Raises:
        ValueError: if it has no ``training_step``, steps its optimizers itself, has nothing to train, or cannot be
            copied.
    """

    def __init__(self, module: Any, fit: Fit | None = None) -> None:
        super().__init__()
        check_automatic(module)
        kind = self.kind = type(module).__name__
        with users_code(f"copying {kind}"):
            self.module, self.shared = independent_copy(module)
        if isinstance(vars(self.module).get("configure_optimizers"), types.FunctionType):
            del self.module.configure_optimizers  # put there for a fit, and bound to the module of that fit
        trainer = getattr(module, "_trainer", None)
        self.fit = fit or (Fit() if trainer is None else Fit.of(trainer))
        self._stand_in = attach_stand_in(self.module, self.fit)
        shapes = _shapes(self.module)
        self.setup_error = "" if trainer is not None else _set_up(self.module)
        with users_code(f"{kind}.configure_model"):
            self.module.configure_model()
        self.built_late = _shapes(self.module) != shapes
        if any(map(is_lazy, self.module.parameters())):
            raise ValueError(f"{kind} has lazy layers without shapes; send one batch through the module first.")
        give_optimizers(self._stand_in, self.module)
        self.trained = [name for name, value in self.module.named_parameters() if value.requires_grad]
        if not self.trained:
            raise ValueError(f"{kind} has no parameter that requires a gradient; there is nothing to train.")
        self.indexed = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self._metrics = [child for child in self.module.modules() if isinstance(child, Metric | MetricCollection)]
        for child in self.module.modules():
            _silence(child)
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training:
                replace_all_batch_norm_modules_(child)
        self._before = PlainAttributes(self.module)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_stand_in", "_before")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._stand_in = attach_stand_in(self.module, self.fit)  # a LightningModule is copied without its Trainer
        give_optimizers(self._stand_in, self.module)
        for metric in self._metrics:
            if "forward" in vars(metric):
                _silence(metric)
        self._before = PlainAttributes(self.module)

    def use_metrics(self) -> bool:
        """Let metrics compute, each call anew, since the loss may be one; false if there are none, or they do."""
        silent = [metric for metric in self._metrics if "forward" in vars(metric)]
        for metric in silent:
            for name in ("update", "forward", "compute"):
                vars(metric).pop(name, None)
            vars(metric).update(vars(metric).pop("_own", {}))
            if isinstance(metric, Metric):
                metric.sync_on_compute = metric.dist_sync_on_step = False
        self._before = PlainAttributes(self.module)
        return bool(silent)

    def params(self) -> Params:
        """The trained parameters of the copy, cloned."""
        values = dict(self.module.named_parameters())
        return {name: values[name].detach().clone() for name in self.trained}

    def output(self, params: Params, batch: Any) -> Any:
        """What ``training_step`` returns for ``batch``, as a dataloader gives it."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        values = {f"module.{name}": value for name, value in {**buffers, **params}.items()}
        try:
            return functional_call(self, values, (batch,))
        finally:
            self._before.put_back()

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
        with users_code(f"{self.kind}.training_step"):
            return self.module.training_step(batch, 0) if self.indexed else self.module.training_step(batch)


def check_automatic(module: Any) -> None:
    """Refuse what is no LightningModule whose ``training_step`` gives the loss of a batch.

    Raises:
        ValueError: with one sentence.
    """
    kind = type(module).__name__
    if not is_lightning(module, "LightningModule"):
        raise ValueError(f"model gave a {kind}; give a LightningModule, or a function that builds one.")
    if not module.automatic_optimization:
        raise ValueError(
            f"{kind} uses manual optimization, so its training_step makes the steps that a rule should make; set "
            "automatic_optimization = True and return the loss."
        )
    if not overrides(module, "training_step"):
        raise ValueError(f"{kind} has no training_step; write one that returns the loss.")
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(f"{kind}.training_step takes the iterator of the dataloader; let it take a batch.")


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: None if is_lazy(value) else value.shape for name, value in module.named_parameters()}


def _set_up(module: Any) -> str:
    """Call ``prepare_data`` and ``setup``, as a Trainer would; what they raise, in words."""
    try:
        if overrides(module, "prepare_data"):
            module.prepare_data()
        if overrides(module, "setup"):
            module.setup("fit")
    except Exception as error:  # it may need more than a step does
        return named(error)
    return ""


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _no_numbers(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {}


def _nan(*args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(torch.nan)


def _silence(module: nn.Module) -> None:
    if is_lightning(module, "LightningModule"):
        vars(module).update(log=_nothing, log_dict=_nothing, print=_nothing)
    elif isinstance(module, Metric | MetricCollection):
        value = _no_numbers if isinstance(module, MetricCollection) else _nan
        held = {name: vars(module)[name] for name in ("update", "compute") if name in vars(module)}
        vars(module).update(update=_nothing, forward=value, compute=value, _own=held)
