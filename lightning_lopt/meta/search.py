"""Searches for better θ during a run: they perturb, compare and change θ, and collect evidence for the change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lopt.checks import check_positive, check_sizes, check_unit_interval
from lightning_lopt.meta.estimators.evolution import es_gradient
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator

STEP_SIZE_ENTRIES = ("*log_step_size", "*log_lr")
WEIGHT_DECAY_ENTRIES = ("*log_weight_decay",)
COMMON_SHARE = 0.8  # share of the variance of a perturbation that is common to all entries
BET_SHARE = 0.8  # share of its capital that a SequentialTest bets on each comparison
NON_FINITE_LOSS = 1e30  # replaces a loss that is not finite
ERROR_RATE = 0.05  # error rate of a SequentialTest: largest probability to accept θ that is no better than the start


class Search:
    r"""Evolution strategies on a few entries of θ, with few rounds and a large change of θ in each.

    A round measures the losses :math:`L` of P antithetic pairs :math:`\theta \pm \epsilon_p`, of θ and of the start.
    With relative losses :math:`u = (L - L_\theta) / |L_\theta|`, capped at 1,

    .. math:: \theta \leftarrow \theta - \mathrm{clip}\big(\gamma \sigma^2 g,\ \pm\sigma\big), \qquad
        g = \frac{1}{2 \sigma^2 P} \sum_p (u_{+p} - u_{-p})\, \epsilon_p

    so θ does not change if the losses do not depend on it. Most of the variance of a perturbation is common to all
    entries, since a model mostly needs larger or smaller steps in all tensors.

    The evidence is a running sum of :math:`u_\theta - u_\mathrm{start}`, in which a round has :math:`\rho` times the
    weight of the next round. While the evidence is above 0, :attr:`chosen` is the start.

    Args:
        rule: the rule whose θ is the start.
        entries: patterns (of ``fnmatch``) for the names of the searched entries of θ.
        pairs: antithetic pairs P of a round, >= 1.
        sigma: standard deviation σ of a perturbation, in the unit of θ, > 0; σ is also the largest change in one round.
        gain: factor γ from a relative difference of losses to the change of θ, > 0.
        memory: weight ρ of a round relative to the next round, in [0, 1).
        seed: seed of the perturbations.

    Attributes:
        first_share: share of the run before the first round.

    Raises:
        ValueError: if a number is out of range, or no name of an entry of θ fits a pattern.
    """

    first_share: ClassVar[float] = 0.0

    def __init__(
        self,
        rule: UpdateRule,
        *,
        entries: Sequence[str] = STEP_SIZE_ENTRIES,
        pairs: int = 1,
        sigma: float = 0.7,
        gain: float = 10.0,
        memory: float = 0.7,
        seed: int = 0,
    ) -> None:
        check_sizes(pairs=pairs)
        check_positive(sigma=sigma, gain=gain)
        check_unit_interval(memory=memory)
        self.start = {name: value.detach().clone() for name, value in rule.named_parameters() if _fits(name, entries)}
        if not self.start:
            names = ", ".join(name for name, _ in rule.named_parameters())
            raise ValueError(
                f"no entry of θ of rule {rule.rule_name!r} fits {tuple(entries)}; name some of {names}, with a sigma "
                "in their unit."
            )
        self.theta = self.start
        self.pairs, self.sigma, self.gain, self.memory, self.seed = pairs, sigma, gain, memory, seed
        self.needed = 0.0
        self.rounds = 0
        self.evidence = 0.0

    @property
    def improving(self) -> bool:
        """Whether the evidence is low enough to use θ, that is at most :attr:`needed`."""
        return self.evidence <= self.needed

    @property
    def chosen(self) -> Theta:
        """The searched entries of θ that a run should use now."""
        return self.theta if self.improving else self.start

    @property
    def particles(self) -> int:
        """Number N of different θ in the next round."""
        return 2 * self.pairs + 1 + self._moved

    @property
    def theta_index(self) -> int:
        """Index of the particle of the next round that is θ itself."""
        return 2 * self.pairs

    @property
    def _moved(self) -> bool:
        return self.theta is not self.start

    def ask(self) -> Theta:
        """The θ of the next round, leading axis N: all ``+``, all ``-``, θ itself, and the start if θ was changed."""
        noise = self._noise()
        start = self.start if self._moved else {}
        return {
            name: torch.stack(
                [*(value + noise[name]), *(value - noise[name]), value, *([start[name]] if start else [])]
            )
            for name, value in self.theta.items()
        }

    def tell(self, losses: Tensor, scale: float) -> float:
        """Change θ by the losses of the particles of :meth:`ask`, shape ``(N,)``.

        Args:
            losses: losses of the particles; a loss that is not finite counts as the cap.
            scale: smallest divisor of relative differences, > 0.

        Returns:
            the relative difference of the losses of θ, before the change, and of the start; below 0 if θ is better.
        """
        present_loss = losses[self.theta_index]
        unit = max(float(present_loss.abs()) if present_loss.isfinite() else 0.0, scale)
        reference = present_loss if present_loss.isfinite() else losses.new_zeros(())
        relative = torch.where(losses.isfinite(), (losses - reference) / unit, 1.0).clamp(-1.0, 1.0)
        if not present_loss.isfinite():
            relative = torch.where(losses.isfinite(), -1.0, 1.0).to(losses)
        plus, minus = relative[: self.pairs], relative[self.pairs : 2 * self.pairs]
        gradient = {name: es_gradient(plus - minus, noise, sigma=self.sigma) for name, noise in self._noise().items()}
        relative_difference = float(relative[self.theta_index] - relative[-1])
        changes = {
            name: (self.gain * self.sigma**2 * value).clamp(-self.sigma, self.sigma) for name, value in gradient.items()
        }
        self.theta = {name: value - changes[name] for name, value in self.theta.items()}
        self.rounds += 1
        self.evidence = self.memory * self.evidence + relative_difference
        return relative_difference

    def _noise(self) -> Theta:
        """Perturbations of this round, leading axis P."""
        draws = generator(self.seed, "search", self.rounds)
        common = torch.randn(self.pairs, generator=draws)
        noise = {}
        for name, value in self.start.items():
            separate_noise = torch.randn(self.pairs, *value.shape, generator=draws)
            mixed = (
                math.sqrt(COMMON_SHARE) * common.reshape(-1, *[1] * value.ndim)
                + math.sqrt(1 - COMMON_SHARE) * separate_noise
            )
            noise[name] = (self.sigma * mixed).to(value)
        return noise

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": dict(self.theta),
            "start": dict(self.start),
            "moved": self._moved,
            "rounds": self.rounds,
            "evidence": self.evidence,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`.

        Raises:
            ValueError: if the state belongs to a search of other entries.
        """
        shapes = [{name: tuple(value.shape) for name, value in theta.items()} for theta in (state["theta"], self.start)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the saved search is of {shapes[0]}, but this search is of {shapes[1]}; resume with the saved rule."
            )
        self.rounds, self.evidence = state["rounds"], state["evidence"]
        self.start = {name: value.to(self.start[name]) for name, value in state["start"].items()}
        self.theta = self.start
        if state["moved"]:
            self.theta = {name: value.to(self.start[name]) for name, value in state["theta"].items()}


class SequentialTest(Search):
    r"""A sequential test of whether all searched entries of θ should be larger by σ, or smaller by σ.

    The test is for rules that calibrate their steps. With these rules, improvements are small differences of one sign
    in short comparisons. The first round compares the two sides with each other, and later rounds compare the better
    side with the start, so there are two particles.

    The method is a betting martingale (its capital is an e-value). The null hypothesis is that θ is better than the
    start in at most half of the comparisons. The capital begins at 1, and 80 % of it is bet on θ in each comparison.
    :attr:`chosen` is the start unless the capital is 20 or more (evidence: :math:`-\log 20`), which takes at least six
    comparisons. Under the null hypothesis the capital ever reaches 20 with a probability of at most 5 %, for any number
    of rounds (Ville's inequality; Shafer 2021, https://arxiv.org/abs/1903.06991). If the capital falls below 1, the
    side is chosen again, and the capital keeps its value.

    Args:
        rule, entries, sigma: see :class:`Search`.
    """

    first_share = 0.1

    def __init__(self, rule: UpdateRule, *, entries: Sequence[str] = WEIGHT_DECAY_ENTRIES, sigma: float = 1.1) -> None:
        super().__init__(rule, entries=entries, sigma=sigma)
        self.needed = math.log(ERROR_RATE)

    @property
    def particles(self) -> int:
        return 2

    @property
    def theta_index(self) -> int:
        return 0

    def ask(self) -> Theta:
        """θ and the start; before a side was chosen, the start plus σ and the start minus σ."""
        pair = (self.theta, self.start) if self._moved else (self._shifted_start(1), self._shifted_start(-1))
        return {name: torch.stack([theta[name] for theta in pair]) for name in self.start}

    def tell(self, losses: Tensor, scale: float) -> float:
        """As :meth:`Search.tell`; returns 0 after a round without a comparison with the start."""
        first_loss, second_loss = map(
            float, torch.nan_to_num(losses, nan=NON_FINITE_LOSS, posinf=NON_FINITE_LOSS, neginf=NON_FINITE_LOSS)
        )
        winner = (first_loss < second_loss) - (first_loss > second_loss)
        self.rounds += 1
        if not self._moved:
            self.theta = self._shifted_start(winner) if winner else self.start
            return 0.0
        self.evidence -= math.log1p(BET_SHARE * winner)
        if self.evidence > 0:
            self.theta = self.start
        return min(max((first_loss - second_loss) / max(abs(second_loss), scale), -1.0), 1.0)

    def _shifted_start(self, sign: int) -> Theta:
        return {name: value + sign * self.sigma for name, value in self.start.items()}


def default_search(rule: UpdateRule, *, entries: Sequence[str] | None = None, sigma: float | None = None) -> Search:
    """A :class:`SequentialTest` of the weight decay of a rule that calibrates its steps, else a :class:`Search` over
    step sizes.

    Args:
        rule: the rule whose θ is the start.
        entries, sigma: arguments of both classes; ``None`` for the default of the class.

    Raises:
        ValueError: as the classes do.

    >>> from lightning_lopt import AdamRule, load_rule
    >>> type(default_search(AdamRule())).__name__, type(default_search(load_rule("base"))).__name__
    ('Search', 'SequentialTest')
    """
    every_argument: dict[str, Any] = {"entries": entries, "sigma": sigma}
    arguments = {name: value for name, value in every_argument.items() if value is not None}
    return (SequentialTest if rule.calibrates_steps else Search)(rule, **arguments)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
