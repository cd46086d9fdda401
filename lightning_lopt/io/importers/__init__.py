"""Import of rules in foreign formats: files of flax (JAX) and of PyLO. The files are read as data."""

from lightning_lopt.io.importers.convert import convert_rule
from lightning_lopt.io.importers.flax_theta import FLAX_KINDS
from lightning_lopt.io.importers.load import import_rule
from lightning_lopt.io.importers.pylo import PYLO_KINDS

__all__ = ["FLAX_KINDS", "PYLO_KINDS", "convert_rule", "import_rule"]
