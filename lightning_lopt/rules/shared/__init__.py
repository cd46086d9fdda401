"""Parts that several rules share: arithmetic, averages, features of entries, of time and of the loss, networks."""
