"""The parts of scripts/quantization_study.py: texts, weights of each way to quantize, measures."""
