"""What the contract of a rule, :mod:`~lightning_lopt.rules.base`, consists of, and what holds of every rule."""
