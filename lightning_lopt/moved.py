"""Former places of modules, under which they can still be imported for one release."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "lightning_lopt"
MOVED = {
    "callbacks.meta_training": "callbacks.online_meta_training",
    "evaluation.assess": "assessment",
    "evaluation.evaluate": "evaluation.evaluator",
    "evaluation.metrics.bootstrap": "evaluation.metrics.base",
    "evaluation.metrics.contest": "evaluation.metrics.base",
    "evaluation.metrics.levels": "evaluation.metrics.scores",
    "evaluation.metrics.losses": "evaluation.metrics.scores",
    "evaluation.metrics.rates": "evaluation.metrics.scores",
    "evaluation.metrics.reported": "evaluation.report.numbers",
    "evaluation.metrics.speedup": "evaluation.metrics.scores",
    "evaluation.problem": "evaluation.measurement",
    "evaluation.problem_result": "evaluation.results",
    "evaluation.report.figures": "evaluation.report.tables_and_pictures",
    "evaluation.report.tables": "evaluation.report.tables_and_pictures",
    "evaluation.rule_record": "evaluation.results",
    "evaluation.runs": "evaluation.measurement",
    "io.build": "rules.contract.build",
    "rules.accumulators": "rules.shared.averages",
    "rules.arguments": "checks",
    "rules.arithmetic": "rules.shared.arithmetic",
    "rules.averages": "rules.shared.moments",
    "rules.calibration": "rules.residual_parts.calibration",
    "rules.checks": "checks",
    "rules.constants": "rules.shared.schedules",
    "rules.controller": "rules.residual_parts.controller",
    "rules.direction": "rules.residual_parts.direction",
    "rules.eigenbasis": "rules.residual_parts.eigenbasis",
    "rules.entry_network": "rules.shared.fast_entry_network",
    "rules.factored": "rules.shared.moments",
    "rules.features": "rules.shared.features",
    "rules.loss_buffer": "rules.shared.loss_features",
    "rules.loss_statistics": "rules.shared.loss_features",
    "rules.mixture_rule": "rules.shared.mixture_rule",
    "rules.recurrent": "rules.shared.recurrent",
    "rules.role_constants": "rules.residual_parts.role_constants",
    "rules.roles": "rules.contract.roles",
    "rules.rnn_mlp_signals": "rules.rnn_mlp",
    "rules.signals": "rules.residual_parts.signals",
    "rules.stacks": "rules.contract.stacks",
    "rules.structure": "rules.residual_parts.structure",
    "rules.tensor_controller": "rules.shared.tensor_controller",
    "rules.time_features": "rules.shared.time_features",
    "rules.untrained": "rules.contract.untrained",
}
"""Present place of a module or package of :mod:`lightning_lopt`, by its former place."""


def present_place(name: str) -> str | None:
    """The present name of a module, by its former name; ``None`` for a name that is not a former name.

    >>> present_place("lightning_lopt.evaluation.assess.run")
    'lightning_lopt.assessment.run'
    """
    package, _, place = name.partition(".")
    parts = place.split(".") if package == PACKAGE else []
    for length in range(len(parts), 0, -1):
        present = MOVED.get(".".join(parts[:length]))
        if present is not None:
            return ".".join([PACKAGE, present, *parts[length:]])
    return None


class FormerPlaces(MetaPathFinder, Loader):
    """Finds a module by its former name, and imports it from its present place; both names give the same module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A specification for a former name; ``None`` for all other names."""
        return None if present_place(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Store the module of the present place in ``sys.modules`` under the former name."""
        name = present_place(module.__name__)
        assert name is not None
        sys.modules[module.__name__] = import_module(name)


def find_former_places() -> None:
    """Let the import system find each module by its former place, too.

    This finder comes before the finders that search in files. The package ``evaluation.assess`` now has the path of
    ``assessment``, so a search in files would import the modules of that folder a second time.
    """
    sys.meta_path.insert(0, FormerPlaces())


def import_former_places(package: str) -> None:
    """Import the modules of a subpackage by their former places, so that they are attributes of the subpackage."""
    for place in MOVED:
        if place.startswith(f"{package}."):
            import_module(f"{PACKAGE}.{place}")
