"""The common part of VeLO and Celo: an LSTM per tensor mixes K networks into one network for the tensor's steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.checks import check_choice, check_decays, check_numbers, check_sizes
from lightning_lopt.rules.base import Columns, Role, StepContext, TensorInputs, TensorState, UpdateRule
from lightning_lopt.rules.shared.arithmetic import view
from lightning_lopt.rules.shared.averages import rates
from lightning_lopt.rules.shared.entry_network import EntryNetwork, Weights
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.features import averaged_features, spread
from lightning_lopt.rules.shared.loss_features import init_losses, loss_features, update_losses
from lightning_lopt.rules.shared.moments import Matrix, Rates, Ties, init_averages, update_averages
from lightning_lopt.rules.shared.recurrent import KEYS, lstm_state
from lightning_lopt.rules.shared.tensor_controller import TensorController
from lightning_lopt.rules.shared.time_features import progress

NORM_EPS = 1e-5
SECOND_MOMENT_EPS = 1e-6
GRADIENT_LIMIT = 1000.0


class MixtureMoment(NamedTuple):
    """Values that are the same for all tensors in a step.

    Attributes:
        losses: averages of the loss, including the loss of this step, by name.
        loss_features: features of the loss, shape (9,).
        progress: features of the share of the horizon, shape (9,).
    """

    losses: dict[str, Tensor]
    loss_features: Tensor
    progress: Tensor


class MixtureRule(UpdateRule):
    """The base class of :class:`VeLORule` and :class:`CeloRule`, which define the inputs of the LSTM and the use of its
    outputs.

    Arguments are those of :class:`VeLORule`; ``signals`` is the number of inputs of the LSTM.
    """

    starts_random = True
    reads_loss = True
    reads_horizon = True
    forgets = False  # whether the state of the LSTM is reset at every step

    def __init__(
        self,
        signals: int,
        lstm_hidden: int,
        copies: int,
        hidden: int,
        step_mult: float,
        exp_mult: float,
        momentum_decays: Sequence[float],
        second_moment_decay: float,
        factored_decays: Sequence[float],
        matrix: Matrix,
    ) -> None:
        super().__init__()
        check_sizes(lstm_hidden=lstm_hidden, copies=copies, hidden=hidden)
        check_numbers(0.0, step_mult=step_mult)
        check_numbers(exp_mult=exp_mult)
        check_decays(momentum_decays, second_moment_decay, factored_decays)
        check_choice("matrix", matrix, ("flat", "stored"))
        self.lstm_hidden, self.copies, self.hidden, self.matrix = lstm_hidden, copies, hidden, matrix
        self.step_mult, self.exp_mult, self.second_moment_decay = step_mult, exp_mult, second_moment_decay
        self.momentum_decays, self.factored_decays = list(momentum_decays), list(factored_decays)
        count = len(self.momentum_decays)
        self.controller = TensorController(signals, lstm_hidden, copies)
        self.networks = EntryNetwork(6 + 4 * count, 4 * count, hidden, copies=copies)

    @property
    def config(self) -> dict[str, Any]:
        names = (
            "lstm_hidden", "copies", "hidden", "step_mult", "exp_mult",
            "momentum_decays", "second_moment_decay", "factored_decays", "matrix",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @abstractmethod
    def _signals(self, param: Tensor, state: Mapping[str, Tensor], at: MixtureMoment) -> Tensor:
        """Inputs of the LSTM for one tensor, (signals,), from the state before this gradient."""

    @abstractmethod
    def _act(self, shares: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the copies, (n, K), which are later divided by K, and factors on the steps, (n,)."""

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        averages = init_averages(self._view(param), len(self.momentum_decays), self._ties)
        return averages | self.controller.lstm.init_state(param)

    def init_shared(self, like: Tensor) -> dict[str, Tensor]:
        return init_losses(like)

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> MixtureMoment:
        if context.loss is None:
            raise ValueError(f"{type(self).__name__} reads the loss, but StepContext.loss is None; pass the loss.")
        horizon = self._loss_horizon(context)
        losses = update_losses(shared, context.loss, horizon)
        features = loss_features(losses, horizon)
        return MixtureMoment(losses, features, progress(context, features))

    def summary(self, inputs: TensorInputs, at: MixtureMoment) -> Columns:
        hidden, cell = self.controller.lstm.recall(inputs.state)
        return {"signals": self._signals(self._view(inputs.param), inputs.state, at), "hidden": hidden, "cell": cell}

    def exchange(
        self, columns: Columns, at: MixtureMoment, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[Columns, dict[str, Tensor]]:
        hidden, cell = columns["hidden"], columns["cell"]
        shares, steps, hidden, cell = self.controller(columns["signals"].to(hidden.dtype), hidden, cell)
        shares, steps = self._act(shares, steps)
        mixtures = self.networks.mixtures(shares, 2)
        return {"step": steps, "hidden": hidden, "cell": cell, **mixtures}, {**shared, **at.losses}

    def step(
        self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: MixtureMoment
    ) -> tuple[Tensor, TensorState]:
        param, state = self._view(inputs.param), inputs.state
        weights = Weights(**{name: controls.get(name) for name in Weights._fields})  # type: ignore[arg-type]
        averages, direction = self._direction(param, self._view(inputs.grad), state, weights)
        scale, factor = torch.sqrt(param.square().mean() + 1e-9), controls["step"].to(param.dtype)
        decay = inputs.weight_decay * factor.abs()
        memory = lstm_state(controls["hidden"], controls["cell"], param)
        new_state = averages | ({key: state[key] for key in KEYS} if self.forgets else memory)
        return -self.step_mult * (factor * scale * direction + decay * param), new_state

    def _direction(
        self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], weights: Weights
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The averages of a tensor after this gradient, and the direction from the network, of the tensor's shape."""
        rate = rates(self.momentum_decays, grad), 1 - self.second_moment_decay, rates(self.factored_decays, grad)
        grad = grad.clamp(-GRADIENT_LIMIT, GRADIENT_LIMIT)
        averages = update_averages(state, grad, Rates(*rate), self._ties)
        inputs, outer = averaged_features(param, grad, averages, self._ties, eps=SECOND_MOMENT_EPS, diagonal_eps=0.0)
        outputs = apply_network(weights.to(grad.dtype), *spread(inputs, outer), NORM_EPS)
        return averages, (outputs[0] * torch.exp(self.exp_mult * outputs[1])).reshape(param.shape)

    def _loss_horizon(self, context: StepContext) -> Tensor:
        """The horizon of the loss averages, 0-dim."""
        return context.total_steps

    @property
    def _ties(self) -> Ties:
        return "first" if self.matrix == "flat" else "last"

    def _view(self, x: Tensor) -> Tensor:
        return view(x, flat=self.matrix == "flat")
