"""Policy gradients, whose differentiated loss has mean 0 and does not measure the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from lightning_lopt.rules.base import Params
from lightning_lopt.tasks.base import Batch, Split
from lightning_lopt.tasks.examples import RandomExamplesTask
from lightning_lopt.tasks.layers import ACTIVATIONS, mlp
from lightning_lopt.tasks.layout import Layout
from lightning_lopt.tasks.teacher import draw_teacher

EPS = 1e-3  # added to the deviation of rewards, in clicks
POINTS = 100.0  # regret is measured in clicks per hundred choices


@dataclass(frozen=True, eq=False)
class Visits:
    """Visits of a page, and the probabilities of clicks on each of K offers.

    Attributes:
        contexts: features of the visitor, float32, shape ``(N, D)``.
        clicks: probability of a click on each offer, float32, shape ``(N, K)``.
    """

    contexts: Tensor
    clicks: Tensor


def draw_visits(
    generator: torch.Generator, train: int, valid: int, features: int, offers: int
) -> tuple[Visits, Visits]:
    """Standard normal contexts, and probabilities that a random network with one hidden layer computes from them.

    Args:
        generator: random generator of all draws.
        train: visits to train on.
        valid: held-out visits.
        features: number D of features of a visitor.
        offers: number K of offers.

    Returns:
        disjoint parts (train, valid).
    """
    contexts = torch.randn(train + valid, features, generator=generator)
    teacher = draw_teacher((features, 32, offers), "tanh", contexts, generator)
    clicks = torch.sigmoid(mlp(teacher, "layers", contexts, 2, torch.tanh) - 1.0)
    return Visits(contexts[:train], clicks[:train]), Visits(contexts[train:], clicks[train:])


class PolicyGradientTask(RandomExamplesTask):
    r"""A contextual bandit trained by policy gradients: one of K offers is chosen for a visitor, who may click on it.

    The network is a perceptron ``layers.0`` and so on, whose outputs are the logits of the policy
    :math:`\pi(a \mid s)`. A step draws an action for each visit of the mini-batch, and a reward r, 1 for a click and 0
    for none. The differentiated loss is the loss of REINFORCE with the mean reward of the mini-batch as baseline, and
    with advantages of deviation 1:

    .. math:: \hat L = -\frac1B \sum_i \frac{r_i - \bar r}{\hat\sigma_r}\, \log \pi(a_i \mid s_i)

    A rule gets this loss during training. Its mean is about 0 for any policy, so its curve does not show progress. The
    measured loss, on both splits, is the regret, which is computed exactly from the probabilities of clicks. The regret
    is the number of missed clicks in a hundred choices, compared with the best offer for each visitor:

    .. math:: L = 100 \cdot \frac1N \sum_i \Big(\max_a p_{ia} - \sum_a \pi(a \mid s_i)\, p_{ia}\Big)

    :attr:`loss_scale` is the regret of a policy that chooses at random. In units of ``loss_scale``, :math:`\hat L` is
    below the level at which losses count as equal, so that speed-ups on training curves are neutral for this task.

    A batch is ``{"contexts": (*lead, B, D), "clicks": (*lead, B, K), "chance": (*lead, B, 2)}`` with numbers in [0, 1)
    that decide on actions and clicks; whole splits have no ``"chance"``.

    Args:
        train: visits to train on.
        valid: held-out visits.
        widths: width of each hidden layer.
        activation: name in :data:`~lightning_lopt.tasks.layers.ACTIVATIONS`.
        scheme: name in :data:`~lightning_lopt.tasks.layout.SCHEMES`.
        init_scale: factor on the initial weights, not on biases.
        options: ``batch_size``, ``name``, ``config``.

    References: Williams 1992 (REINFORCE); Schulman et al. 2017 on advantages of deviation 1,
        https://arxiv.org/abs/1707.06347

    Example:
        >>> train, valid = draw_visits(torch.Generator().manual_seed(0), 100, 50, features=4, offers=3)
        >>> task = PolicyGradientTask(train, valid, widths=(8,))
        >>> params = task.init(torch.Generator().manual_seed(0))
        >>> sorted(task.metrics(params, task.full_batch("valid")))
        ['reward']
    """

    random_when_measured: ClassVar[bool] = False

    def __init__(
        self,
        train: Visits,
        valid: Visits,
        widths: Sequence[int] = (64, 64),
        activation: str = "tanh",
        scheme: str = "uniform",
        init_scale: float = 1.0,
        **options: Any,
    ) -> None:
        layout = Layout(scheme, init_scale)
        layout.mlp((train.contexts.shape[1], *widths, train.clicks.shape[1]))
        uniform = torch.full_like(train.clicks, 1 / train.clicks.shape[1])
        splits: dict[Split, Batch] = {"train": vars(train).copy(), "valid": vars(valid).copy()}
        super().__init__(splits, layout, float(regret(uniform, train.clicks)), **options)
        self.layers = len(widths) + 1
        self.activation = ACTIVATIONS[activation]

    def random_entries(self, examples: torch.Size, generator: torch.Generator) -> Batch:
        return {"chance": torch.rand(*examples, 2, generator=generator)}

    def logits(self, params: Params, contexts: Tensor) -> Tensor:
        """Logits of the policy, shape ``(B, K)``, for contexts of shape ``(B, D)``."""
        return mlp(params, "layers", contexts, self.layers, self.activation)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        return regret(self.logits(params, batch["contexts"]).softmax(-1), batch["clicks"])

    def surrogate(self, params: Params, batch: Batch) -> Tensor:
        """The loss that is differentiated in a training step, 0-dim; pure and vmap-able."""
        log_policy = F.log_softmax(self.logits(params, batch["contexts"]), -1)
        actions, rewards = draw_actions_and_rewards(log_policy.detach().exp(), batch["clicks"], batch["chance"])
        centred = rewards - rewards.mean()
        advantages = centred / (centred.square().mean().sqrt() + EPS)
        return -(advantages * log_policy.gather(-1, actions[:, None])[:, 0]).mean()

    def gradient(self, params: Params, batch: Batch) -> tuple[Params, Tensor, Params]:
        grads, loss = grad_and_value(self.surrogate)(params, batch)
        return grads, loss, {}

    def metrics(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        policy = self.logits(params, batch["contexts"]).softmax(-1)
        return {"reward": (policy * batch["clicks"]).sum(-1).mean()}


def regret(policy: Tensor, clicks: Tensor) -> Tensor:
    """Expected number of missed clicks in a hundred choices, compared with the best offer for each visitor, 0-dim.

    Args:
        policy: probabilities of the offers, shape ``(N, K)``.
        clicks: probability of a click on each offer, shape ``(N, K)``.

    Example:
        >>> regret(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.3, 0.1]]))
        tensor(10.0000)
    """
    return POINTS * (clicks.amax(-1) - (policy * clicks).sum(-1)).mean()


def draw_actions_and_rewards(policy: Tensor, clicks: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Actions drawn from a policy, and their rewards.

    Args:
        policy: probabilities of the offers, shape ``(B, K)``.
        clicks: probability of a click on each offer, shape ``(B, K)``.
        chance: uniform in [0, 1), shape ``(B, 2)``: the first number decides on the action, the second on the click.

    Returns:
        actions, int64, shape ``(B,)``, and rewards, 1 or 0, float32, shape ``(B,)``.
    """
    below = policy.cumsum(-1)[:, :-1] <= chance[:, :1]  # without the last sum, which rounding may make smaller than 1
    actions = below.sum(-1)
    return actions, (chance[:, 1] < clicks.gather(-1, actions[:, None])[:, 0]).to(policy.dtype)
