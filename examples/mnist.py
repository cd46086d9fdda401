"""Predict from short pilots whether a learned rule beats tuned AdamW on handwritten digits, and check the prediction.

The embedded rule was meta-trained on image classification (scikit-learn's 8x8 digits) and on tables and other synthetic
data, with nine kinds of small tasks. Without arguments, the example trains on these digits. MNIST is the harder test:
it has 28x28 images of other writers, and the rule has seen none of these images.

python examples/mnist.py                    # scikit-learn's digits, which come with the package
python examples/mnist.py --data mnist       # MNIST, which torchvision downloads if it is installed
python examples/mnist.py --data FOLDER      # MNIST's IDX files
python examples/mnist.py --data FILE.npz    # arrays called images and labels, x_train and y_train, ...
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    print("loading PyTorch and Lightning", file=sys.stderr, flush=True)  # loading takes seconds

import torch.nn.functional as F
from side_by_side import Data, Module, parser_for, predict_and_race
from torch import Tensor, nn

from lightning_lopt.seeding import generator
from lightning_lopt.tasks import LabelledImages, load_images


class Perceptron(Module):
    """Two hidden layers."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def metrics(self, batch: list[Tensor]) -> dict[str, float]:
        return {"accuracy": float((self.net(batch[0]).argmax(1) == batch[1]).float().mean())}


class Convolutional(Perceptron):
    """Two convolutions and one linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        Module.__init__(self)
        self.net = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


def load(source: str) -> LabelledImages:
    """Images of a name, a file or a folder, or MNIST by torchvision."""
    if source != "mnist":
        return load_images(source)
    try:
        from torchvision.datasets import MNIST
    except ImportError:
        raise SystemExit(
            "--data mnist needs torchvision, which is not installed; install it, or give --data FOLDER with IDX files."
        ) from None
    mnist = MNIST("data", download=True)
    return LabelledImages.from_arrays(mnist.data.numpy(), mnist.targets.numpy(), "mnist")


def main() -> None:
    parser = parser_for(__doc__, steps=300, picture="mnist.png")
    parser.add_argument("--data", default="digits", help="digits, mnist, npz file or folder of IDX files")
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    arguments = parser.parse_args()
    train, valid = load(arguments.data).standardised().split(0.2, generator(0, "split"), max_valid=2000)
    shape, classes = train.shape, train.classes
    data = Data((train.inputs, train.targets), (valid.inputs, valid.targets), batch_size=64)

    def build() -> Module:
        return Perceptron(train.features, classes) if arguments.model == "mlp" else Convolutional(shape[0], classes)

    predict_and_race(build, data, arguments, f"{len(train):,} images of {train.name}, {arguments.model}")


if __name__ == "__main__":
    main()
