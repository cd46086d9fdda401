"""The parts of the flagship, :class:`~lightning_lopt.ResidualRule`."""
