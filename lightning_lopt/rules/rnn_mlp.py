"""RNN-MLP: an LSTM for each tensor talks to the network that steps its entries, and to the other tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lopt.rules.accumulators import average, constants, rates
from lightning_lopt.rules.arguments import check_choice, check_numbers, check_sizes
from lightning_lopt.rules.arithmetic import view
from lightning_lopt.rules.base import Params, Role, State, StepContext, UpdateRule, Updates, register_rule
from lightning_lopt.rules.entry_network import EntryNetwork, apply_network, initial_weight
from lightning_lopt.rules.factored import Matrix
from lightning_lopt.rules.loss_statistics import LossStatistics
from lightning_lopt.rules.recurrent import LSTM, Layer, remembered
from lightning_lopt.rules.rnn_mlp_signals import STATISTICS, Moments, clipped, tensor_statistics
from lightning_lopt.rules.time_features import TIMES, waves

NORM_EPS = 1e-5
FROM_NETWORK, FROM_LSTM, TO_NETWORK = 16, 18, 17  # numbers that are passed on, named by who sends or gets them
SIGNALS = FROM_LSTM + FROM_NETWORK + STATISTICS + 2
TRAIN_DECAY, VALID_DECAY = 0.9, 0.95


@register_rule("rnn_mlp")
class RNNMLPRule(UpdateRule):
    r"""RNN-MLP: :math:`\Delta p = -\eta\, (o_1 e^{\kappa o_2} + \lambda p)`.

    - Gradients are clipped, entry by entry, at ten times their running size over all tensors.
    - A :class:`~lightning_lopt.rules.recurrent.LSTM` sees of each tensor the logarithms, and signs, of sizes, means and
      variances of gradient, momenta, second moments and parameter, its shape, the loss
      (:mod:`~lightning_lopt.rules.loss_statistics`), what the network sent at the last step, and what all LSTMs did.
    - An :class:`~lightning_lopt.rules.entry_network.EntryNetwork` sees of each entry gradient, parameter, its
      logarithm, momenta m, second moments v, m / √v and 1 / √v, normalised over the tensor, the time, the number and
      size of tensors, and what the LSTM sends; its further outputs, averaged, go to the LSTM.

    Args:
        lstm_hidden: size H of the LSTM.
        hidden: width of the network.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        decays: of the k momenta and second moments, each in [0, 1).
        matrix: ``"flat"`` for tensors of rank >= 2 as matrices (out, everything else), or ``"stored"`` for all axes of
            tensors stored as in the reference, (in, out) for a linear layer.

    Raises:
        ValueError: if an argument lies outside its range, and at a step without a loss.

    State bytes per parameter (float32, k = 5): 40, and 8 H + 68 per tensor.
    References: Metz et al. 2020, https://arxiv.org/abs/2009.11243.
    """

    starts_random = True
    reads_loss = True

    def __init__(
        self,
        lstm_hidden: int = 64,
        hidden: int = 32,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        decays: Sequence[float] = (0.5, 0.9, 0.99, 0.999, 0.9999),
        matrix: Matrix = "flat",
    ) -> None:
        super().__init__()
        check_sizes(lstm_hidden=lstm_hidden, hidden=hidden)
        check_numbers(0.0, step_mult=step_mult)
        check_numbers(exp_mult=exp_mult)
        if not decays or not all(0 <= decay < 1 for decay in decays):
            raise ValueError(f"decays must be numbers in [0, 1), at least one, got {list(decays)}.")
        check_choice("matrix", matrix, ("flat", "stored"))
        self.lstm_hidden, self.hidden, self.decays, self.matrix = lstm_hidden, hidden, list(decays), matrix
        self.step_mult, self.exp_mult = step_mult, exp_mult
        self.lstm = LSTM(SIGNALS, lstm_hidden)
        self.to_lstms, self.to_network = Layer(lstm_hidden, FROM_LSTM), Layer(lstm_hidden, TO_NETWORK)
        inner, outputs = 3 + 4 * len(self.decays), 2 + FROM_NETWORK
        self.network = EntryNetwork(inner, 0, hidden, outputs, len(TIMES) + 3 + TO_NETWORK)
        self.initial_from_network = initial_weight(FROM_NETWORK, fan_in=FROM_NETWORK)
        self.initial_from_lstm = initial_weight(FROM_LSTM, fan_in=FROM_LSTM)

    @property
    def config(self) -> dict[str, Any]:
        names = ("lstm_hidden", "hidden", "step_mult", "exp_mult", "decays", "matrix")
        return {name: getattr(self, name) for name in names}

    def init_state(self, params: Params, roles: Mapping[str, Role]) -> State:
        tensors = {}
        for name, param in params.items():
            zeros = {
                key: param.new_zeros(len(self.decays), *view(param).shape) for key in ("momentum", "second_moment")
            }
            tensors[name] = zeros | {"from_network": param.new_zeros(FROM_NETWORK)} | self.lstm.init_state(param)
        if not params:
            return State({}, {})
        like = next(iter(params.values()))
        shared = {f"{split}_loss": like.new_zeros(3) for split in ("train", "valid")}
        shared |= {
            "clip": torch.stack([like.new_full((), 0.01), like.new_ones(())]),
            "from_lstm": like.new_zeros(FROM_LSTM),
        }
        return State(tensors, shared)

    def validated(self, state: State, loss: Tensor) -> State:
        """The state with a validation loss taken into it, which the next steps see; without any it counts as 0."""
        losses = LossStatistics(*state.shared["valid_loss"]).updated(loss, VALID_DECAY)
        return State(state.tensors, state.shared | {"valid_loss": torch.stack(losses)})

    def forward(self, params: Params, grads: Params, state: State, context: StepContext) -> tuple[Updates, State]:
        if not grads:
            return {}, state
        if context.loss is None:
            raise ValueError("RNNMLPRule reads the loss, but StepContext.loss is None; pass the loss.")
        losses = LossStatistics(*state.shared["train_loss"]).updated(context.loss, TRAIN_DECAY)
        grads, clip = clipped(grads, state.shared["clip"])
        shared = state.shared | {"train_loss": torch.stack(losses), "clip": clip}
        moments, tensors = {}, {}
        for name, grad in grads.items():
            own, rate = state.tensors[name], rates(self.decays, grad)
            momentum = average(own["momentum"], grad, rate)
            second_moment = average(own["second_moment"], grad.square(), rate)
            moments[name] = Moments(grad[None], view(params[name])[None], momentum, second_moment)
            tensors[name] = {"momentum": momentum, "second_moment": second_moment}
        signals = self._signals(params, moments, state, losses, context.loss)
        hidden, cell = self.lstm.recall([state.tensors[name] for name in grads])
        hidden, cell = self.lstm(signals.to(hidden.dtype), hidden, cell)
        shared["from_lstm"] = self.to_lstms(hidden).mean(0).to(clip.dtype)
        sent, updates = self.to_network(hidden), {}
        for row, name in enumerate(grads):
            param, own = moments[name].param[0], tensors[name]
            outputs = self._outputs(moments[name], sent[row], len(grads), context)
            step = outputs[0] * torch.exp(self.exp_mult * outputs[1]) + context.weight_decay.get(name, 0.0) * param
            updates[name] = (-self.step_mult * step).reshape(params[name].shape)
            own["from_network"] = outputs[2:].flatten(1).mean(1)
            own |= remembered(hidden[row], cell[row], param)
        return updates, State(tensors, shared)

    def _signals(
        self, params: Params, moments: Mapping[str, Moments], state: State, losses: LossStatistics, loss: Tensor
    ) -> Tensor:
        """What the LSTM sees, (n, SIGNALS)."""
        valid = LossStatistics(*state.shared["valid_loss"])
        seen = torch.stack([losses.whiten(x, TRAIN_DECAY) for x in (loss, valid.mean * valid.corrected(VALID_DECAY))])
        begun = state.shared["train_loss"][2] > 0
        from_lstm = torch.where(begun, state.shared["from_lstm"], self.initial_from_lstm.to(seen.dtype))
        rows = []
        for name, own in moments.items():
            before = state.tensors[name]
            initial = self.initial_from_network.to(own.param.dtype)
            from_network = torch.where(before["started"] > 0, before["from_network"], initial)
            statistics = tensor_statistics(own, params[name].ndim, self._sizes(params[name]))
            parts = [from_lstm, from_network, statistics[:-3], seen, statistics[-3:]]
            rows.append(torch.cat([x.to(seen.dtype) for x in parts]))
        return torch.stack(rows)

    def _outputs(self, moments: Moments, sent: Tensor, count: int, context: StepContext) -> Tensor:
        """The network's outputs for a tensor of shape s among ``count``, (2 + FROM_NETWORK, *s)."""
        param = moments.param
        sizes = constants([math.log(count) - 1, math.log(max(param.numel(), 1))], param)
        norm = torch.log(torch.linalg.vector_norm(param) + 1e-8)
        raw = torch.cat([waves(context.step, param), sizes[:1], norm[None], sizes[1:], sent.to(param.dtype)])
        weights = self.network.weights(param.dtype, 2 + FROM_NETWORK, raw)
        return apply_network(weights, moments, (), NORM_EPS)

    def _sizes(self, param: Tensor) -> list[int]:
        """Lengths of the axes in the order of the reference, in which a linear layer is (in, out)."""
        return list(view(param).shape[::-1] if self.matrix == "flat" else param.shape)
