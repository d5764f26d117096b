"""Checkpoints whose weights are quantized already: their codes, or their values as floats."""
