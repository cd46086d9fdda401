"""Recipes as docs/other-loops.md and the package's docstring print them, and the plain loop that they must equal."""

import copy
import re
from pathlib import Path

import torch
from torch import nn

import lightning_lopt.interop
from lightning_lopt import LearnedOptimizer

PAGE = Path(__file__).parents[2] / "docs" / "other-loops.md"
STEPS = 6


def page_blocks():
    """The Python blocks of the page on other libraries: Fabric, Accelerate, transformers."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def docstring_blocks():
    """The indented blocks of the docstring of ``lightning_lopt.interop``."""
    blocks = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", lightning_lopt.interop.__doc__)
    return [re.sub(r"^ {4}", "", block, flags=re.M) for block in blocks]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def examples(number):
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(5, generator=draws), torch.randn(3, generator=draws)) for _ in range(number)]


def data(batches):
    """Batches of 4, as a DataLoader that does not shuffle."""
    return torch.utils.data.DataLoader(examples(4 * batches), batch_size=4)


def plain(net, batches, accumulated=1, dtype=None):
    """``net`` trained by a loop without any library, on windows of that many batches; and the loss of each step."""
    net = copy.deepcopy(net)
    optimizer = LearnedOptimizer(net, total_steps=len(batches) // accumulated)
    losses = []
    for start in range(0, len(batches), accumulated):
        total = torch.zeros(())
        for x, y in batches[start : start + accumulated]:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = nn.functional.mse_loss(net(x), y) / accumulated
            loss.backward()
            total = total + loss.detach()
        optimizer.step(total)
        optimizer.zero_grad()
        losses.append(float(total))
    return net, losses


def assert_equal(net, other):
    """In all parameters; wrappers may add to their names."""
    ends = [[param.detach() for param in each.parameters()] for each in (net, other)]
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
