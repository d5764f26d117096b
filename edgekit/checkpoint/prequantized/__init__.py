"""Checkpoints whose weights are already quantized: their codes, or their values as floats."""
