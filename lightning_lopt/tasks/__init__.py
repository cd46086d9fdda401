"""Inner problems: a model, its loss and its batches, as pure functions."""
