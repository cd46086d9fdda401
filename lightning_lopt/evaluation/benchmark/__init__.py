"""What a step of an optimizer costs on a model: time, operations and memory, beside what the device allows."""
