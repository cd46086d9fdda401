"""RNN-MLP: the LSTM of a tensor exchanges numbers with the network of its entries, and with the other LSTMs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lopt.checks import check_averages, check_choice, check_numbers, check_sizes
from lightning_lopt.rules.base import (
    Columns,
    Role,
    State,
    StepContext,
    TensorInputs,
    TensorState,
    UpdateRule,
    register_rule,
)
from lightning_lopt.rules.shared.arithmetic import constants, variance, view
from lightning_lopt.rules.shared.averages import average, rates
from lightning_lopt.rules.shared.entry_network import EntryNetwork, initial_weight
from lightning_lopt.rules.shared.fast_entry_network import apply_network
from lightning_lopt.rules.shared.loss_features import LossStatistics
from lightning_lopt.rules.shared.moment_features import MomentFeatures
from lightning_lopt.rules.shared.moments import Matrix
from lightning_lopt.rules.shared.recurrent import LSTM, Layer, lstm_state
from lightning_lopt.rules.shared.time_features import TIMES, waves

NORM_EPS = 1e-5
FROM_NETWORK, FROM_LSTM, TO_NETWORK = 16, 18, 17  # sizes of the vectors that LSTM and network exchange
AXES = 4
STATISTICS = 12 + AXES
SIGNALS = FROM_LSTM + FROM_NETWORK + STATISTICS + 2
TRAIN_DECAY, VALID_DECAY, CLIP_DECAY = 0.9, 0.95, 0.99


class RNNMLPMoment(NamedTuple):
    """Values that are the same for all tensors in a step.

    Attributes:
        step: number of steps before this step, 0-dim.
        train_loss: statistics of the loss, including the loss of this step, shape (3,).
        losses_seen: whitened training and validation loss, inputs of the LSTM, shape (2,).
        from_lstm: mean output of all LSTMs at the last step, shape (FROM_LSTM,).
        clip_limit: limit at which entries of gradients are clipped, 0-dim.
    """

    step: Tensor
    train_loss: Tensor
    losses_seen: Tensor
    from_lstm: Tensor
    clip_limit: Tensor


@register_rule("rnn_mlp")
class RNNMLPRule(UpdateRule):
    r"""RNN-MLP: :math:`\Delta p = -\eta\, (o_1 e^{\kappa o_2} + \lambda p)`.

    - Gradients are clipped, entry by entry, at ten times their running size over all tensors.
    - Inputs of the :class:`~lightning_lopt.rules.shared.recurrent.LSTM` of a tensor are the logarithms, and signs, of
      sizes, means and variances of gradient, momenta, second moments and parameter; the shape of the tensor; the loss
      (:mod:`~lightning_lopt.rules.shared.loss_features`); the outputs of the network, and of all LSTMs, at the last
      step.
    - Inputs of the :class:`~lightning_lopt.rules.shared.entry_network.EntryNetwork` of an entry are gradient,
      parameter, logarithm of the parameter, momenta m, second moments v, m / √v and 1 / √v, normalised over the tensor;
      the time; the number and size of tensors; outputs of the LSTM. The network has further outputs, whose means over
      the tensor are inputs of the LSTM.

    Args:
        lstm_hidden: size H of the LSTM.
        hidden: width of the network.
        step_mult: step size η, >= 0.
        exp_mult: κ.
        decays: decays of the k momenta and second moments, each in [0, 1).
        matrix: ``"flat"`` treats tensors of rank >= 2 as matrices (out, everything else); ``"stored"`` uses all axes,
            for tensors stored as in the reference, (in, out) for a linear layer.

    Raises:
        ValueError: if an argument lies outside its range, and at a step without a loss.

    State bytes per parameter (float32, k = 5): 40, and 8 H + 68 per tensor.
    References: Metz et al. 2020, https://arxiv.org/abs/2009.11243.

    Example:
        >>> from lightning_lopt import LearnedOptimizer
        >>> model = nn.Linear(4, 2)
        >>> optimizer = LearnedOptimizer(model, RNNMLPRule(lstm_hidden=8, hidden=8), total_steps=100)
        >>> loss = model(torch.ones(3, 4)).square().mean()
        >>> loss.backward()
        >>> optimizer.step(loss=loss)  # the rule reads the loss
    """

    starts_random = True
    reads_loss = reads_validation = True

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
        check_averages("decays", decays)
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

    def init_tensor(self, param: Tensor, role: Role) -> TensorState:
        zeros = {key: param.new_zeros(len(self.decays), *view(param).shape) for key in ("momentum", "second_moment")}
        return zeros | {"from_network": param.new_zeros(FROM_NETWORK)} | self.lstm.init_state(param)

    def init_shared(self, like: Tensor) -> dict[str, Tensor]:
        losses = {f"{split}_loss": like.new_zeros(3) for split in ("train", "valid")}
        clip = torch.stack([like.new_full((), 0.01), like.new_ones(())])
        return losses | {"clip": clip, "from_lstm": like.new_zeros(FROM_LSTM)}

    def validated(self, state: State, loss: Tensor, progress: Tensor) -> State:
        """The state after a validation loss; before the first validation loss, the next steps read 0."""
        losses = LossStatistics(*state.shared["valid_loss"]).updated(loss, VALID_DECAY)
        return State(state.tensors, state.shared | {"valid_loss": torch.stack(losses)})

    def at(self, shared: Mapping[str, Tensor], context: StepContext) -> RNNMLPMoment:
        if context.loss is None:
            raise ValueError("RNNMLPRule reads the loss, but StepContext.loss is None; pass the loss.")
        losses = LossStatistics(*shared["train_loss"]).updated(context.loss, TRAIN_DECAY)
        valid = LossStatistics(*shared["valid_loss"])
        loss_pair = context.loss, valid.mean * valid.corrected(VALID_DECAY)
        whitened = torch.stack([losses.whiten(loss, TRAIN_DECAY) for loss in loss_pair])
        has_started = shared["train_loss"][2] > 0
        from_lstm = torch.where(has_started, shared["from_lstm"], self.initial_from_lstm.to(whitened.dtype))
        return RNNMLPMoment(context.step, torch.stack(losses), whitened, from_lstm, clip_limit(shared["clip"]))

    def summary(self, inputs: TensorInputs, at: RNNMLPMoment) -> Columns:
        moments = self._moments(inputs, at)
        initial = self.initial_from_network.to(inputs.param.dtype)
        from_network = torch.where(inputs.state["started"] > 0, inputs.state["from_network"], initial)
        statistics = tensor_statistics(moments, inputs.param.ndim, self._sizes(inputs.param))
        parts = [at.from_lstm, from_network, statistics[:-3], at.losses_seen, statistics[-3:]]
        signals = torch.cat([x.to(at.losses_seen.dtype) for x in parts])
        hidden, cell = self.lstm.recall(inputs.state)
        return {"signals": signals, "hidden": hidden, "cell": cell, "power": moments.grad.square().mean()}

    def exchange(
        self, columns: Columns, at: RNNMLPMoment, shared: Mapping[str, Tensor], context: StepContext
    ) -> tuple[Columns, dict[str, Tensor]]:
        hidden, cell, clip = columns["hidden"], columns["cell"], shared["clip"]
        hidden, cell = self.lstm(columns["signals"].to(hidden.dtype), hidden, cell)
        new_shared = {
            **shared,
            "train_loss": at.train_loss,
            "clip": clip_updated(clip, columns["power"].to(clip.dtype)),
            "from_lstm": self.to_lstms(hidden).mean(0).to(clip.dtype),
        }
        count = torch.full_like(columns["power"], math.log(len(hidden)) - 1)
        return {"hidden": hidden, "cell": cell, "sent": self.to_network(hidden), "count": count}, new_shared

    def step(
        self, inputs: TensorInputs, controls: Mapping[str, Tensor], at: RNNMLPMoment
    ) -> tuple[Tensor, TensorState]:
        moments = self._moments(inputs, at)
        outputs = self._outputs(moments, controls["sent"], controls["count"], at.step)
        step = outputs[0] * torch.exp(self.exp_mult * outputs[1]) + inputs.weight_decay * moments.param[0]
        state = {
            "momentum": moments.momentum,
            "second_moment": moments.second_moment,
            "from_network": outputs[2:].flatten(1).mean(1),
        }
        return -self.step_mult * step, state | lstm_state(controls["hidden"], controls["cell"], inputs.param)

    def _moments(self, inputs: TensorInputs, at: RNNMLPMoment) -> MomentFeatures:
        """The averages after the present, clipped gradient."""
        limit = at.clip_limit.to(inputs.grad.dtype)
        grad = view(inputs.grad).clamp(-limit, limit)
        rate = rates(self.decays, grad)
        momentum = average(inputs.state["momentum"], grad, rate)
        second_moment = average(inputs.state["second_moment"], grad.square(), rate)
        return MomentFeatures(grad[None], view(inputs.param)[None], momentum, second_moment)

    def _outputs(self, moments: MomentFeatures, sent: Tensor, count: Tensor, step: Tensor) -> Tensor:
        """Outputs of the network for a tensor of shape s, (2 + FROM_NETWORK, *s); ``count``: log number of tensors."""
        param = moments.param
        size = constants([math.log(max(param.numel(), 1))], param)
        norm = torch.log(torch.linalg.vector_norm(param) + 1e-8)
        inputs = torch.cat([waves(step, param), count.to(param.dtype)[None], norm[None], size, sent.to(param.dtype)])
        weights = self.network.weights(param.dtype, 2 + FROM_NETWORK, inputs)
        return apply_network(weights, moments, (), NORM_EPS)

    def _sizes(self, param: Tensor) -> list[int]:
        """Lengths of the axes in the order of the reference, in which a linear layer is (in, out)."""
        return list(view(param).shape[::-1] if self.matrix == "flat" else param.shape)


def tensor_statistics(moments: MomentFeatures, rank: int, sizes: list[int]) -> Tensor:
    """The inputs of the LSTM that follow from one tensor, shape (STATISTICS,), in the order of the reference.

    They are the log norm of the gradient; whether its ``rank`` is 0, as ±1; log and sign of the mean of momenta, of
    second moments and of the parameter; the log norm of the parameter; the log sizes of four axes, where missing axes
    have size 1; and, placed at the end of all inputs, the log variances of momenta, second moments and parameter.
    """
    grad, param, *averages = moments
    means = [_mean(x) for x in (*averages, param)]
    pairs = [x for mean in means for x in (_log(mean), mean.sign())]
    variances = [_log(variance(x.flatten())) for x in (*averages, param)]
    norms = [_log(torch.linalg.vector_norm(x)) for x in (grad, param)]
    shape = constants([math.log(max(size, 1)) - 1 for size in (*sizes[:AXES], *[1] * (AXES - len(sizes)))], param)
    scalar = constants([1.0 if rank == 0 else -1.0], param)
    return torch.cat([norms[0][None], scalar, torch.stack([*pairs, norms[1]]), shape, torch.stack(variances)])


def clip_limit(clip: Tensor) -> Tensor:
    """Ten times the running size of gradients, 0-dim; ``clip`` contains that size and its count, shape (2,)."""
    size, count = clip
    limit: Tensor = 10 * size / -torch.expm1(count * math.log(CLIP_DECAY))
    return limit


def clip_updated(clip: Tensor, powers: Tensor) -> Tensor:
    """Running size and count, shape (2,), updated by the mean squares of the clipped gradients of n tensors, (n,)."""
    size, count = clip
    size = torch.lerp(size, torch.sqrt(1e-8 + powers.mean()), 1 - CLIP_DECAY)
    return torch.stack([size, count + 1])


def _mean(x: Tensor) -> Tensor:
    return x.mean()


def _log(x: Tensor) -> Tensor:
    return torch.log(1e-8 + x.abs()).clamp(-5.0, 5.0)
