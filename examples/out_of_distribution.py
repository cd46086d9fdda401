"""Where the learned optimizer loses to Adam, and how a few short pilots see it coming.

Progression of diabetes in 442 patients (scikit-learn's data) from ten measurements, by a perceptron. The targets are as
they were recorded, between 25 and 346, and nobody has standardised them. The rule makes steps in proportion to how
large a tensor was when training began, which is the right size where data are standardised, as in all of its
meta-training; here the outputs have to grow a thousandfold first. AdamW with a large learning rate gets there in time.

python examples/out_of_distribution.py                  # the targets as they are
python examples/out_of_distribution.py --standardise    # and with the cure
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from side_by_side import Data, Module, parser_for, predict_and_race
from torch import Tensor, nn

from lightning_lopt.seeding import generator


class Regressor(Module):
    """Two hidden layers and one output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])


def load(standardise: bool) -> Data:
    """Inputs standardised, targets if asked for; a fifth of the patients is for validation."""
    from sklearn.datasets import load_diabetes

    inputs, targets = (torch.from_numpy(values).float() for values in load_diabetes(return_X_y=True))
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    if standardise:
        targets = (targets - targets.mean()) / targets.std()
    order = torch.randperm(len(inputs), generator=generator(0, "split"))
    valid, train = order[: len(order) // 5], order[len(order) // 5 :]
    return Data((inputs[train], targets[train]), (inputs[valid], targets[valid]), batch_size=32)


def main() -> None:
    parser = parser_for(__doc__, steps=150, picture="out_of_distribution.png", budget="5s")
    parser.add_argument("--standardise", action="store_true", help="give the targets mean 0 and standard deviation 1")
    arguments = parser.parse_args()
    data = load(arguments.standardise)
    title = f"Diabetes, targets {'standardised' if arguments.standardise else 'as recorded'}"
    predict_and_race(lambda: Regressor(data.train[0].shape[1]), data, arguments, title)


if __name__ == "__main__":
    main()
