"""The table of the contract matrix: its axes, which cells cannot exist and why, and which are refused."""

import itertools
import random
from dataclasses import astuple, dataclass, replace

FSDP2_IS_SUPPORTED = True  # the one switch for all cells of FSDP2

EPOCHS, WINDOWS, WINDOW_SIZE = 3, 3, 32  # optimizer steps an epoch, and examples of each over all ranks
STEPS = EPOCHS * WINDOWS

AXES = {
    "optimizer": ("own", "swap"),
    "precision": ("32-true", "bf16-true", "bf16-mixed", "16-mixed", "64-true"),
    "accumulation": ("1", "4", "short"),  # "short": the last window of an epoch holds 2 of 4 batches
    "clip": ("none", "norm", "value"),
    "schedule": ("none", "epoch", "step", "plateau"),
    "loop": ("automatic", "manual"),
    "processes": ("one", "ddp", "fsdp2"),
}
NETWORKS = (
    "plain",
    "unused",
    "shared",
    "frozen",
    "empty",
    "scalar",
    "batchnorm",
    "embedding",
    "sparse",
    "compiled",
    "pytorch_lightning",
)


@dataclass(frozen=True)
class Cell:
    """One fit: a value of every axis, and the network that is trained."""

    optimizer: str = "own"
    precision: str = "32-true"
    accumulation: str = "1"
    clip: str = "none"
    schedule: str = "none"
    loop: str = "automatic"
    processes: str = "one"
    network: str = "plain"

    def __str__(self) -> str:
        words = [f"accumulation_{self.accumulation}", f"clip_{self.clip}", f"schedule_{self.schedule}"]
        return "-".join([self.optimizer, self.precision, *words, self.loop, self.processes, self.network])

    @property
    def ranks(self) -> int:
        return 1 if self.processes == "one" else 2

    @property
    def factor(self) -> int:
        """Number by which each micro-batch's loss is divided."""
        return 1 if self.accumulation == "1" else 4

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an epoch."""
        return WINDOWS * self.factor - (2 if self.accumulation == "short" else 0)

    @property
    def is_half(self) -> bool:
        """Whether forward passes round to half precision, so that another grouping of examples rounds otherwise."""
        return self.precision not in ("32-true", "64-true")


def impossible(cell: Cell) -> str | None:
    """Why a cell cannot exist, whatever the optimizer; ``None`` if it can."""
    if cell.network == "sparse" and cell.clip != "none":
        return "torch.nn.utils clips no sparse gradients"
    if cell.processes != "fsdp2":
        return None
    if not FSDP2_IS_SUPPORTED:
        return "the rules do not know sharded parameters yet"
    if cell.precision in ("16-mixed", "64-true"):
        return "Lightning's ModelParallelStrategy refuses this precision"
    if cell.network in ("scalar", "empty", "sparse"):
        return "fully_shard takes no parameters of rank 0, none without entries, and no sparse gradients"
    return None


#: Cells that are refused before their first step, and a pattern of the sentence that says so.
REFUSED = {
    Cell(processes="fsdp2", precision="64-true"): "does not support .*64-true",
    Cell(processes="fsdp2", network="scalar"): "support scalar parameters",
}


def warning(cell: Cell) -> str | None:
    """Pattern of the warning a cell must give, ``None`` where it must give none."""
    if cell.optimizer == "own" or cell.schedule == "none":
        return None
    name = {"epoch": "StepLR", "step": "ExponentialLR", "plateau": "ReduceLROnPlateau"}[cell.schedule]
    return f"no effect: {name}"


def every_cell() -> list[Cell]:
    """The whole product of :data:`AXES`; networks take turns, so that each meets every value of every axis."""
    product = [Cell(*values) for values in itertools.product(*AXES.values())]
    order = random.Random(0).sample(range(len(product)), len(product))
    cells = [replace(cell, network=NETWORKS[turn % len(NETWORKS)]) for cell, turn in zip(product, order, strict=True)]
    return [cell for cell in cells if impossible(cell) is None]


def pairwise_cells() -> list[Cell]:
    """Few cells in which every possible pair of values of two axes, networks among them, occurs.

    Greedy: of the cells that hold the first pair still missing, drawn at random, the one with most missing pairs.
    """
    axes = [*AXES.values(), NETWORKS]
    draws = random.Random(0)
    missing = dict.fromkeys(_all_pairs(axes))  # a dict, whose order does not change from run to run
    chosen: list[Cell] = []
    while missing:
        pair = next(iter(missing))
        candidates = [cell for cell in (_drawn(axes, pair, draws) for _ in range(60)) if impossible(cell) is None]
        if not candidates:  # no cell holds this pair
            del missing[pair]
            continue
        best = max(candidates, key=lambda cell: sum(found in missing for found in _pairs(cell)))
        chosen.append(best)
        for found in _pairs(best):
            missing.pop(found, None)
    return chosen


Pair = tuple[int, str, int, str]


def _all_pairs(axes: list[tuple[str, ...]]) -> list[Pair]:
    places = sorted(itertools.combinations(range(len(axes)), 2), key=lambda p: -len(axes[p[0]]) * len(axes[p[1]]))
    return [(i, a, j, b) for i, j in places for a, b in itertools.product(axes[i], axes[j])]


def _pairs(cell: Cell) -> list[Pair]:
    values = astuple(cell)
    return [(i, values[i], j, values[j]) for i, j in itertools.combinations(range(len(values)), 2)]


def _drawn(axes: list[tuple[str, ...]], pair: Pair, draws: random.Random) -> Cell:
    values = [draws.choice(axis) for axis in axes]
    values[pair[0]], values[pair[2]] = pair[1], pair[3]
    return Cell(*values)
