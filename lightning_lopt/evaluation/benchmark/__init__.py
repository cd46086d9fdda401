"""Benchmarks of optimizer steps: time, operations and memory, compared with the limits of the device."""
