"""The training_step of a LightningModule as a pure function of parameters and batch, with a stand-in Trainer."""

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

    - ``self.log``, ``self.log_dict`` and ``self.print`` do nothing. Metrics of torchmetrics have no state and return
      NaN until :meth:`use_metrics` activates them.
    - Batch normalisation in training mode uses the statistics of the batch and has no running averages. Other buffers
      are constants: changes of buffers, of attributes and of lists of the module are undone after the step.
    - ``batch_idx`` is 0. ``self.trainer`` is a stand-in (:func:`~.stand_in.attach_stand_in`), which returns
      ``global_step`` and ``current_epoch`` of ``fit``.

    Args:
        module: any LightningModule with automatic optimization, of ``lightning.pytorch`` or ``pytorch_lightning``; it
            is copied and not changed.
        fit: values that the stand-in Trainer returns; ``None`` for values of the module's Trainer, or defaults.

    Attributes:
        shared: names of attributes that cannot be copied, which the copy shares with the module.
        setup_error: text of the error of ``setup("fit")``, empty if there was no error; ``setup`` is called unless the
            module has a Trainer.
        built_late: whether ``setup`` or ``configure_model`` created parameters or changed their shapes.

    Raises:
        ValueError: if the module has no ``training_step``, steps its optimizers itself, has nothing to train, or cannot
            be copied.
    """

    def __init__(self, module: Any, fit: Fit | None = None) -> None:
        super().__init__()
        check_automatic(module)
        kind = self.kind = type(module).__name__
        with users_code(f"copying {kind}"):
            self.module, self.shared = independent_copy(module)
        if isinstance(vars(self.module).get("configure_optimizers"), types.FunctionType):
            del self.module.configure_optimizers  # set by a Trainer, and bound to the original module
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
        self._plain_attributes = PlainAttributes(self.module)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_stand_in", "_plain_attributes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._stand_in = attach_stand_in(self.module, self.fit)  # a LightningModule is copied without its Trainer
        give_optimizers(self._stand_in, self.module)
        for metric in self._metrics:
            if "forward" in vars(metric):
                _silence(metric)
        self._plain_attributes = PlainAttributes(self.module)

    def use_metrics(self) -> bool:
        """Activate the metrics, without state between calls, since a metric may be the loss; return whether a metric
        was silent."""
        silent_metrics = [metric for metric in self._metrics if "forward" in vars(metric)]
        for metric in silent_metrics:
            for name in ("update", "forward", "compute"):
                vars(metric).pop(name, None)
            vars(metric).update(vars(metric).pop("_silenced_methods", {}))
            if isinstance(metric, Metric):
                metric.sync_on_compute = metric.dist_sync_on_step = False
        self._plain_attributes = PlainAttributes(self.module)
        return bool(silent_metrics)

    def params(self) -> Params:
        """The trained parameters of the copy, cloned."""
        values = dict(self.module.named_parameters())
        return {name: values[name].detach().clone() for name in self.trained}

    def output(self, params: Params, batch: Any) -> Any:
        """The result of ``training_step`` for ``batch``, which has the structure of the dataloader's batches."""
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        values = {f"module.{name}": value for name, value in {**buffers, **params}.items()}
        try:
            return functional_call(self, values, (batch,))
        finally:
            self._plain_attributes.put_back()

    def loss(self, params: Params, batch: Any) -> Tensor:
        """The loss in :meth:`output`, 0-dim.

        Raises:
            ValueError: if the result holds no loss.
        """
        return self.loss_in(self.output(params, batch))

    def loss_in(self, output: Any) -> Tensor:
        """The loss in a result of ``training_step``, 0-dim.

        Raises:
            ValueError: if the result holds no loss.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            returned = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"{self.kind}.training_step gave {returned} for the loss; return one number for every batch, as a "
                'tensor or under "loss".'
            )
        return loss.reshape(())

    def forward(self, batch: Any) -> Any:
        with users_code(f"{self.kind}.training_step"):
            return self.module.training_step(batch, 0) if self.indexed else self.module.training_step(batch)


def check_automatic(module: Any) -> None:
    """Check that ``module`` is a LightningModule whose ``training_step`` returns the loss of a batch.

    Raises:
        ValueError: with one sentence.
    """
    class_name = type(module).__name__
    if not is_lightning(module, "LightningModule"):
        raise ValueError(f"model gave a {class_name}; give a LightningModule, or a function that builds one.")
    if not module.automatic_optimization:
        raise ValueError(
            f"{class_name} uses manual optimization, so its training_step makes the steps that a rule should make; set "
            "automatic_optimization = True and return the loss."
        )
    if not overrides(module, "training_step"):
        raise ValueError(f"{class_name} has no training_step; write one that returns the loss.")
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(f"{class_name}.training_step takes the iterator of the dataloader; let it take a batch.")


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: None if is_lazy(value) else value.shape for name, value in module.named_parameters()}


def _set_up(module: Any) -> str:
    """Call ``prepare_data`` and ``setup`` as a Trainer does; return the text of their error, or an empty text."""
    try:
        if overrides(module, "prepare_data"):
            module.prepare_data()
        if overrides(module, "setup"):
            module.setup("fit")
    except Exception as error:  # setup may need things that a step does not need
        return named(error)
    return ""


def _return_none(*args: Any, **kwargs: Any) -> None:
    return None


def _return_empty_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {}


def _return_nan(*args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(torch.nan)


def _silence(module: nn.Module) -> None:
    if is_lightning(module, "LightningModule"):
        vars(module).update(log=_return_none, log_dict=_return_none, print=_return_none)
    elif isinstance(module, Metric | MetricCollection):
        constant_function = _return_empty_dict if isinstance(module, MetricCollection) else _return_nan
        overridden = {name: vars(module)[name] for name in ("update", "compute") if name in vars(module)}
        vars(module).update(
            update=_return_none, forward=constant_function, compute=constant_function, _silenced_methods=overridden
        )
