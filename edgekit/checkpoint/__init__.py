"""A model folder or Hub snapshot as config, lazy tensors, tokenizer and chat template."""
