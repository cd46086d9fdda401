"""The parts of the contract of a rule, :mod:`~lightning_lopt.rules.base`: types, roles, stacks, registry, building."""
