"""Parts that several rules share: arithmetic, averages, networks, and features of entries, of time and of the loss."""
