"""Cost of a step of an optimizer on a model: time, operations and memory, compared with the limits of the device."""
