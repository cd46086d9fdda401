"""Lightning's classes are recognised in both of its packages."""

import lightning.pytorch as L
import pytest

from lightning_lopt._lightning import is_lightning, is_lightning_class

pl = pytest.importorskip("pytorch_lightning")


@pytest.mark.parametrize("package", [L, pl], ids=["lightning.pytorch", "pytorch_lightning"])
def test_modules_data_callbacks_and_their_subclasses(package):
    class Module(package.LightningModule):
        pass

    assert is_lightning(Module(), "LightningModule")
    assert is_lightning_class(Module, "LightningModule")
    assert is_lightning(package.callbacks.GradientAccumulationScheduler({0: 1}), "GradientAccumulationScheduler")
    assert is_lightning(package.LightningDataModule(), "FSDPStrategy", "LightningDataModule")
    assert not is_lightning(Module(), "LightningDataModule")
    assert not is_lightning(Module, "LightningModule")
    assert not is_lightning_class(Module(), "LightningModule")


def test_a_class_of_somebody_else_with_the_same_name_is_none():
    class LightningModule:
        pass

    assert not is_lightning(LightningModule(), "LightningModule")
    assert not is_lightning_class(LightningModule, "LightningModule")
