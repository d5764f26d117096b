"""Checkpoints: a model folder, GGUF file or Hub snapshot as config, lazy tensors and text files."""
