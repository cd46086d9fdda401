"""Executions of inner steps: eager, compiled, or recorded as a CUDA graph, behind one protocol."""

from lightning_lopt.meta.engine.compiled import Compiled
from lightning_lopt.meta.engine.eager import Eager
from lightning_lopt.meta.engine.execution import Advanced, Execution
from lightning_lopt.meta.engine.recorded import Recorded

__all__ = ["Advanced", "Compiled", "Eager", "Execution", "Recorded"]
