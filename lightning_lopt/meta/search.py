"""Better θ beside a run: perturb, compare, move, and keep score of whether the move was worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lopt.meta.estimators.evolution import es_gradient
from lightning_lopt.meta.theta import Theta
from lightning_lopt.rules.base import UpdateRule
from lightning_lopt.seeding import generator

STEP_SIZES = ("*log_step_size", "*log_lr")
WEIGHT_DECAY = ("*log_weight_decay",)
SHARED = 0.8  # share of a perturbation's variance that all entries have in common
STAKE = 0.8  # share of what a SequentialTest has that it bets on each comparison
LARGE = 1e30  # loss of what is not finite
DOUBT = 0.05  # largest probability that a SequentialTest ever believes what is no better than the start


class Search:
    r"""Evolution strategies on a few entries of θ, with rounds so rare that each has to move far.

    A round measures the losses :math:`L` of P antithetic pairs :math:`\theta \pm \epsilon_p`, of θ and of the start.
    With relative losses :math:`u = (L - L_\theta) / |L_\theta|`, capped at 1,

    .. math:: \theta \leftarrow \theta - \mathrm{clip}\big(\gamma \sigma^2 g,\ \pm\sigma\big), \qquad
        g = \frac{1}{2 \sigma^2 P} \sum_p (u_{+p} - u_{-p})\, \epsilon_p

    so where nothing depends on θ, nothing moves. Perturbations share most of their variance over the entries: what one
    model wants is first of all larger or smaller steps everywhere.

    A running sum of :math:`u_\theta - u_\mathrm{start}`, each round counting :math:`\rho` times the next, is the
    evidence: while it is above 0, :attr:`chosen` is the start.

    Args:
        rule: whose θ is the start.
        entries: patterns (as of ``fnmatch``) of the names of θ that are searched.
        pairs: antithetic pairs P of a round, >= 1.
        sigma: standard deviation σ of a perturbation, in the unit of θ, > 0; also the longest move of one round.
        gain: γ, > 0: how far a relative difference of the losses moves θ.
        memory: ρ in [0, 1).
        seed: of the perturbations.

    Attributes:
        first_share: share of the run before the first round.

    Raises:
        ValueError: if a number is out of range, or no entry of θ has a name that fits.
    """

    first_share: ClassVar[float] = 0.0

    def __init__(
        self,
        rule: UpdateRule,
        *,
        entries: Sequence[str] = STEP_SIZES,
        pairs: int = 1,
        sigma: float = 0.7,
        gain: float = 10.0,
        memory: float = 0.7,
        seed: int = 0,
    ) -> None:
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs!r}.")
        for name, value in (("sigma", sigma), ("gain", gain)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if not 0 <= memory < 1:
            raise ValueError(f"memory must lie in [0, 1), got {memory!r}.")
        self.start = {name: value.detach().clone() for name, value in rule.named_parameters() if _fits(name, entries)}
        if not self.start:
            known = ", ".join(name for name, _ in rule.named_parameters())
            raise ValueError(
                f"no entry of θ of rule {rule.rule_name!r} fits {tuple(entries)}; name some of {known}, with a sigma "
                "in their unit."
            )
        self.theta = self.start
        self.pairs, self.sigma, self.gain, self.memory, self.seed = pairs, sigma, gain, memory, seed
        self.needed = 0.0
        self.rounds = 0
        self.evidence = 0.0

    @property
    def improving(self) -> bool:
        """Whether the evidence so far suffices for θ: :attr:`needed`, or less."""
        return self.evidence <= self.needed

    @property
    def chosen(self) -> Theta:
        """The searched entries of θ that a run should use now."""
        return self.theta if self.improving else self.start

    @property
    def particles(self) -> int:
        """Number N of different θ in the round to come."""
        return 2 * self.pairs + 1 + self._moved

    @property
    def here(self) -> int:
        """Which particle of the round to come is θ itself."""
        return 2 * self.pairs

    @property
    def _moved(self) -> bool:
        return self.theta is not self.start

    def ask(self) -> Theta:
        """θ of the round to come, leading axis N: all ``+``, all ``-``, θ itself, and the start where that differs."""
        noise = self._noise()
        start = self.start if self._moved else {}
        return {
            name: torch.stack(
                [*(value + noise[name]), *(value - noise[name]), value, *([start[name]] if start else [])]
            )
            for name, value in self.theta.items()
        }

    def tell(self, losses: Tensor, scale: float) -> float:
        """Take in the losses of what :meth:`ask` gave, shape ``(N,)``, and move θ.

        Args:
            losses: one that is not finite counts as the cap.
            scale: smallest loss that relative differences are relative to, > 0.

        Returns:
            the loss of θ before the move relative to that of the start, below 0 where θ is better.
        """
        here = losses[self.here]
        unit = max(float(here.abs()) if here.isfinite() else 0.0, scale)
        reference = here if here.isfinite() else losses.new_zeros(())
        relative = torch.where(losses.isfinite(), (losses - reference) / unit, 1.0).clamp(-1.0, 1.0)
        if not here.isfinite():
            relative = torch.where(losses.isfinite(), -1.0, 1.0).to(losses)
        plus, minus = relative[: self.pairs], relative[self.pairs : 2 * self.pairs]
        gradient = {name: es_gradient(plus - minus, noise, sigma=self.sigma) for name, noise in self._noise().items()}
        ahead = float(relative[self.here] - relative[-1])
        moves = {
            name: (self.gain * self.sigma**2 * value).clamp(-self.sigma, self.sigma) for name, value in gradient.items()
        }
        self.theta = {name: value - moves[name] for name, value in self.theta.items()}
        self.rounds += 1
        self.evidence = self.memory * self.evidence + ahead
        return ahead

    def _noise(self) -> Theta:
        """Perturbations of this round, leading axis P."""
        draws = generator(self.seed, "search", self.rounds)
        common = torch.randn(self.pairs, generator=draws)
        noise = {}
        for name, value in self.start.items():
            own = torch.randn(self.pairs, *value.shape, generator=draws)
            mixed = math.sqrt(SHARED) * common.reshape(-1, *[1] * value.ndim) + math.sqrt(1 - SHARED) * own
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
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: if it is of a search of other entries.
        """
        shapes = [{name: tuple(value.shape) for name, value in theta.items()} for theta in (state["theta"], self.start)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the saved search is of {shapes[0]} where {shapes[1]} is needed; resume with that rule.")
        self.rounds, self.evidence = state["rounds"], state["evidence"]
        self.start = {name: value.to(self.start[name]) for name, value in state["start"].items()}
        self.theta = self.start
        if state["moved"]:
            self.theta = {name: value.to(self.start[name]) for name, value in state["theta"].items()}


class SequentialTest(Search):
    r"""Is the start better with σ more, or with σ less, in all searched entries of θ? For rules that calibrate steps.

    Beside such a rule little is left to find, which short comparisons see as small differences of one sign. So the
    first round compares the two sides with each other, and later ones the better side with the start: two particles.

    The method is a betting martingale (an e-value). The evidence is a bet against "θ is no more often ahead than the
    start". It begins with 1 and stakes 0.8 of what it has in each comparison; :attr:`chosen` is the start unless it has
    20 (evidence: :math:`-\log 20`), which takes six comparisons at least. Where θ is no better, it ever has 20 with a
    probability of 5 % at most, however many rounds there are (Ville's inequality; Shafer 2021,
    https://arxiv.org/abs/1903.06991). With less than in the beginning sides are chosen anew, and what was lost stays
    lost.

    Args:
        rule, entries, sigma: see :class:`Search`.
    """

    first_share = 0.1

    def __init__(self, rule: UpdateRule, *, entries: Sequence[str] = WEIGHT_DECAY, sigma: float = 1.1) -> None:
        super().__init__(rule, entries=entries, sigma=sigma)
        self.needed = math.log(DOUBT)

    @property
    def particles(self) -> int:
        return 2

    @property
    def here(self) -> int:
        return 0

    def ask(self) -> Theta:
        """θ and the start; before there is a θ, the start with σ more and with σ less."""
        pair = (self.theta, self.start) if self._moved else (self._side(1), self._side(-1))
        return {name: torch.stack([theta[name] for theta in pair]) for name in self.start}

    def tell(self, losses: Tensor, scale: float) -> float:
        """As :meth:`Search.tell`; 0 is returned where nothing was compared with the start."""
        first, second = map(float, torch.nan_to_num(losses, nan=LARGE, posinf=LARGE, neginf=LARGE))
        winner = (first < second) - (first > second)
        self.rounds += 1
        if not self._moved:
            self.theta = self._side(winner) if winner else self.start
            return 0.0
        self.evidence -= math.log1p(STAKE * winner)
        if self.evidence > 0:
            self.theta = self.start
        return min(max((first - second) / max(abs(second), scale), -1.0), 1.0)

    def _side(self, sign: int) -> Theta:
        return {name: value + sign * self.sigma for name, value in self.start.items()}


def default_search(
    rule: UpdateRule,
    *,
    entries: Sequence[str] | None = None,
    sigma: float | None = None,
    pairs: int | None = None,
    seed: int | None = None,
) -> Search:
    """A :class:`SequentialTest` of the weight decay of a rule that calibrates its steps, else a :class:`Search` over
    step sizes.

    Args:
        rule: whose θ is the start.
        entries, sigma: of either; ``None`` for the default of its class.
        pairs, seed: of :class:`Search`; a :class:`SequentialTest` has neither, since it draws nothing.

    >>> from lightning_lopt import AdamRule, load_rule
    >>> type(default_search(AdamRule())).__name__, type(default_search(load_rule("base"))).__name__
    ('Search', 'SequentialTest')
    """
    given: dict[str, Any] = {"entries": entries, "sigma": sigma}
    if not rule.calibrates_steps:
        given |= {"pairs": pairs, "seed": seed}
    kind = SequentialTest if rule.calibrates_steps else Search
    return kind(rule, **{name: value for name, value in given.items() if value is not None})


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
