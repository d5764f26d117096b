"""Quantization: weights to codes and scales, once, for every format."""
